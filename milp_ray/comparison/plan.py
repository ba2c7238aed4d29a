"""What a comparison computes: methods, the users of each condition, what a cell follows from.

Everything that is wrong with the file, the data or a model is found here, before anything runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from milp_ray.comparison.cells import FORMAT, Cell, Condition, conditions_of, digest_of
from milp_ray.config.comparison import Comparison, MethodOptions
from milp_ray.config.loading import resolved
from milp_ray.config.models import Study
from milp_ray.config.search import Unit
from milp_ray.data.records import UserSplit
from milp_ray.errors import Problem, StudyError
from milp_ray.evaluation.baselines import method_names
from milp_ray.evaluation.controls import derangement
from milp_ray.study.inputs import Inputs, load_inputs
from milp_ray.study.users import Users, load_users

#: The paper's table 4: a search over some of the factors alone -> what it searches.
SPACES = {
    "milp_num": "num",
    "milp_size": "size",
    "milp_layer": "layer",
    "milp_num+size": "num+size",
    "milp_num+layer": "num+layer",
    "milp_size+layer": "size+layer",
}
#: The method with a model beside the base.
ENCODED = "rag_dense"
#: One search and one placement for everybody, whatever the file's ``search.unit``.
POPULATION_MILP = "milp_population"
#: Methods that use what a search chose.
SEARCHED = frozenset(
    {"milp", "milp_inject", "milp_instruct", "milp+rag", "task_lora+milp", POPULATION_MILP, *SPACES}
)
# What of a study a result does not follow from: where and how fast it is computed, and names.
_NOT_CONTENT: dict[str, bool | set[str]] = {
    "name": True,
    "seed": True,
    "ray": True,
    "storage": True,
    "data": {"path", "alias_key", "users"},
    "model": {"path", "device"},
}
_SEARCH_ONLY = ("objectives", "search", "choose")


@dataclass(frozen=True)
class MethodPlan:
    """One method of a comparison.

    Attributes:
        name: in the file and in tables.
        builder: by which :func:`milp_ray.evaluation.baselines.make` knows it.
        factors: that its search varies; empty: the study's, or there is no search.
        unit: whose placement is searched; None: the study's, or there is no search.
    """

    name: str
    builder: str
    factors: str = ""
    unit: Unit | None = None

    @property
    def searched(self) -> bool:
        """Whether it needs a finished search."""
        return self.name in SEARCHED


def method_plans(names: Iterable[str]) -> tuple[MethodPlan, ...]:
    """The methods of a comparison file.

    Raises:
        StudyError: no method has one of the names; all of them are told.
    """
    known = sorted({*method_names(), *SPACES, POPULATION_MILP})
    problems, plans = [], []
    for place, name in enumerate(names):
        if name in SPACES:
            plans.append(MethodPlan(name, "milp", SPACES[name]))
        elif name == POPULATION_MILP:
            plans.append(MethodPlan(name, "milp", unit="population"))
        elif name in known:
            plans.append(MethodPlan(name, name))
        else:
            near = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else ""
            fact = f"no method is named {name!r}"
            problems.append(Problem(f"methods[{place}]", fact, "one of " + ", ".join(known), remedy))
    if problems:
        raise StudyError("comparison", problems)
    return tuple(plans)


@dataclass(frozen=True)
class ConditionPlan:
    """A data set, base model and seed with everything that is computed from them.

    Attributes:
        condition: which.
        study: of it, resolved.
        inputs: the compared users, the base's structure and the memory space.
        options: of the methods.
        encoder: of the sentence encoder, what tells it from another; empty where none is used.
        background: users for what is trained across users; the compared users' own train and
            validation parts where the file names none.
        methods: of the comparison.
    """

    condition: Condition
    study: Study
    inputs: Inputs
    options: MethodOptions
    encoder: Mapping[str, str]
    background: Users
    methods: tuple[MethodPlan, ...]

    @property
    def users(self) -> Mapping[str, UserSplit]:
        """The compared users, by alias."""
        return self.inputs.users.splits

    @cached_property
    def others(self) -> Mapping[str, str]:
        """Of each user another one, whose memory answers the user's samples as a control."""
        return derangement(self.users, self.condition.seed)

    def digest(self, method: MethodPlan) -> str:
        """Of everything that a cell's result follows from."""
        return digest_of(self._content(method) | {"method": method.builder})

    def run_digest(self, method: MethodPlan) -> str:
        """Of everything that the search behind a method follows from."""
        return digest_of(self._content(method) | {"method": "search"})

    def learned_digest(self) -> str:
        """Of everything that a method without a search learns from."""
        return digest_of(self._content(MethodPlan("none", "none")) | {"method": "learned"})

    def unit_of(self, method: MethodPlan) -> Unit:
        """Whose placement the search behind a method searches."""
        return method.unit or self.study.unit

    def searched_study(self, method: MethodPlan, runs: Path, key_file: Path) -> Study:
        """The study of the search behind a method; its name tells it from any other search."""
        study = self.study
        memory = study.memory.model_copy(update={"factors": method.factors or study.memory.factors})
        search = study.search.model_copy(update={"unit": self.unit_of(method)})
        return study.model_copy(
            update={
                "name": f"{self.condition.name}-{self.run_digest(method)[:6]}",
                "memory": memory,
                "search": search,
                "trial": study.trial.model_copy(update={"save_adapters": False}),
                "final": study.final.model_copy(update={"automatic": False}),
                "storage": study.storage.model_copy(update={"path": str(runs)}),
                "data": study.data.model_copy(update={"alias_key": str(key_file)}),
            }
        )

    def _content(self, method: MethodPlan) -> dict[str, object]:
        sections = self.study.model_dump(mode="json", exclude=_NOT_CONTENT)
        if not method.searched:
            sections = {name: value for name, value in sections.items() if name not in _SEARCH_ONLY}
        return {
            "format": FORMAT,
            "seed": self.condition.seed,
            "sections": sections,
            "options": self.options.model_dump(mode="json", exclude={"encoder"}),
            "factors": method.factors,
            "unit": self.unit_of(method) if method.searched else None,
            "users": self.inputs.users.fingerprint,
            "background": self.background.fingerprint,
            "base": dict(self.inputs.base),
            "encoder": dict(self.encoder) if method.builder == ENCODED else {},
        }


def plan_of(comparison: Comparison, key: bytes) -> list[ConditionPlan]:
    """Everything that a comparison computes.

    Raises:
        StudyError: a method is unknown, or something does not go with a comparison.
        DataError, ModelError, SpaceError: data or a model is not usable.
    """
    methods = method_plans(comparison.methods)
    _check(comparison)
    encoder = _encoder(comparison)
    plans = []
    for condition in conditions_of(comparison):
        study = resolved(comparison.study(condition.dataset, condition.model, condition.seed))
        inputs = load_inputs(study, key)
        background = _background(comparison, study, inputs, key)
        plans.append(
            ConditionPlan(condition, study, inputs, comparison.options, encoder, background, methods)
        )
    return plans


def cells_of(plans: Iterable[ConditionPlan]) -> list[Cell]:
    """All cells, in the order of the tables."""
    return [Cell(plan.condition, method.name) for plan in plans for method in plan.methods]


def _background(comparison: Comparison, study: Study, inputs: Inputs, key: bytes) -> Users:
    dataset = next(data for name, data in comparison.datasets.items() if study.name.startswith(f"{name}-"))
    if dataset.background is None:
        return inputs.users
    settings = dataset.data(background=True)
    found = load_users(resolved(study.model_copy(update={"data": settings})), key)
    both = sorted(found.splits.keys() & inputs.users.splits.keys())
    if both:
        fact = f"{len(both)} of the background users are compared users, too"
        remedy = "take them out of the background file, or leave background out"
        raise StudyError("comparison", [Problem("datasets.background", fact, "other users", remedy)])
    return found


def _encoder(comparison: Comparison) -> dict[str, str]:
    """What tells the sentence encoder from another, if one is used."""
    if ENCODED not in comparison.methods:
        return {}
    from milp_ray.evaluation.baselines.rag_dense import encoder_fingerprint

    return encoder_fingerprint(comparison.options.encoder)


def _check(comparison: Comparison) -> None:
    problems = []
    if comparison.ray.workers_per_trial > 1:
        fact = f"is {comparison.ray.workers_per_trial}, and methods are compared on whole bases"
        remedy = "set it to 1, with a worker that holds the base (ray.gpus_per_worker)"
        problems.append(Problem("ray.workers_per_trial", fact, "1", remedy))
    if problems:
        raise StudyError("comparison", problems)
