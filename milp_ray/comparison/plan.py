"""What a comparison computes: methods, the users of each condition, what a cell follows from.

Everything that is wrong with the file, the data or a model is found here, before anything runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
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

#: The method with a model beside the base.
ENCODED = "rag_dense"
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
_SEARCHED_BY = ("format", "seed", "sections", "users", "base")  # of a cell's content, a search's part


@dataclass(frozen=True)
class MethodSearch:
    """How the search behind a method differs from the file's; None: not at all.

    Attributes:
        factors: that it varies.
        unit: whose placement it searches.
        surrogate: that proposes.
    """

    factors: str | None = None
    unit: Unit | None = None
    surrogate: str | None = None

    def of(self, study: Study) -> Study:
        """The study with what differs."""
        memory = study.memory.model_copy(update={"factors": self.factors or study.memory.factors})
        changes = {"unit": self.unit or study.unit, "surrogate": self.surrogate or study.search.surrogate}
        return study.model_copy(update={"memory": memory, "search": study.search.model_copy(update=changes)})


@dataclass(frozen=True)
class MethodPlan:
    """One method of a comparison.

    Attributes:
        name: in the file and in tables.
        builder: by which :func:`milp_ray.evaluation.baselines.make` knows it.
        search: that it needs; None: it needs none.
    """

    name: str
    builder: str
    search: MethodSearch | None = None

    @property
    def searched(self) -> bool:
        """Whether it needs a finished search."""
        return self.search is not None


#: The paper's table 4: a search over some of the factors alone -> what it searches.
SPACES = {
    "milp_num": "num",
    "milp_size": "size",
    "milp_layer": "layer",
    "milp_num+size": "num+size",
    "milp_num+layer": "num+layer",
    "milp_size+layer": "size+layer",
}
_PLAIN = MethodSearch()
_SEARCHED = {
    "milp": MethodPlan("milp", "milp", _PLAIN),
    "milp_inject": MethodPlan("milp_inject", "milp_inject", _PLAIN),
    "milp_instruct": MethodPlan("milp_instruct", "milp_instruct", _PLAIN),
    "milp+rag": MethodPlan("milp+rag", "milp+rag", _PLAIN),
    "task_lora+milp": MethodPlan("task_lora+milp", "task_lora+milp", _PLAIN),
    # One search and one placement for everybody, whatever the file's search.unit.
    "milp_population": MethodPlan("milp_population", "milp", MethodSearch(unit="population")),
    **{name: MethodPlan(name, "milp", MethodSearch(factors=factors)) for name, factors in SPACES.items()},
}
# Where users are divided, a user has no samples to choose a placement by: chance searches for all.
_BY_USER = {"random_lora": MethodPlan("random_lora", "milp", MethodSearch(surrogate="random"))}


def method_plans(names: Iterable[str], *, by_user: bool = False) -> tuple[MethodPlan, ...]:
    """The methods of a comparison file.

    Args:
        names: of the file.
        by_user: whether users are divided, and not each user's samples.

    Raises:
        StudyError: no method has one of the names; all of them are told.
    """
    special = _SEARCHED | (_BY_USER if by_user else {})
    known = sorted({*method_names(), *special})
    problems, plans = [], []
    for place, name in enumerate(names):
        if name in known:
            plans.append(special.get(name) or MethodPlan(name, name))
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
        background: users for what is trained across users; where the file names none, the compared
            users' own train and validation parts, or the users of these parts.
        methods: of the comparison.
    """

    condition: Condition
    study: Study
    inputs: Inputs
    options: MethodOptions
    encoder: Mapping[str, str]
    background: Users
    methods: tuple[MethodPlan, ...]

    @cached_property
    def users(self) -> Mapping[str, UserSplit]:
        """The compared users, by alias; where users are divided, those of the test part."""
        found = self.inputs.users
        return _of_parts(found, "test").splits if found.parts else found.splits

    @cached_property
    def others(self) -> Mapping[str, str]:
        """Of each user another one, whose memory answers the user's samples as a control."""
        return derangement(self.users, self.condition.seed)

    def digest(self, method: MethodPlan) -> str:
        """Of everything that a cell's result follows from."""
        return digest_of(self._content(method) | {"method": method.builder})

    def search_digest(self, method: MethodPlan) -> str:
        """Of everything that the search behind a method follows from."""
        content = self._content(method)
        return digest_of({name: content[name] for name in _SEARCHED_BY} | {"method": "search"})

    def run_digest(self, method: MethodPlan) -> str:
        """Of everything that a method with a search learns from."""
        return digest_of(self._content(method) | {"method": "search"})

    def learned_digest(self) -> str:
        """Of everything that a method without a search learns from."""
        return digest_of(self._content(MethodPlan("none", "none")) | {"method": "learned"})

    def searches(self, method: MethodPlan) -> int:
        """How many searches a method needs: one for everybody, or one a user, or none."""
        if method.search is None:
            return 0
        return 1 if method.search.of(self.study).search.unit == "population" else len(self.users)

    def searched_study(self, method: MethodPlan, runs: Path, key_file: Path) -> Study:
        """The study of the search behind a method; its name tells it from any other search."""
        study = (method.search or _PLAIN).of(self.study)
        return study.model_copy(
            update={
                "name": f"{self.condition.name}-{self.search_digest(method)[:6]}",
                "trial": study.trial.model_copy(update={"save_adapters": False}),
                "final": study.final.model_copy(update={"automatic": False}),
                "storage": study.storage.model_copy(update={"path": str(runs)}),
                "data": study.data.model_copy(update={"alias_key": str(key_file)}),
            }
        )

    def _content(self, method: MethodPlan) -> dict[str, object]:
        study = self.study if method.search is None else method.search.of(self.study)
        sections = study.model_dump(mode="json", exclude=_NOT_CONTENT)
        if method.search is None:
            sections = {name: value for name, value in sections.items() if name not in _SEARCH_ONLY}
        return {
            "format": FORMAT,
            "seed": self.condition.seed,
            "sections": sections,
            "options": self.options.model_dump(mode="json", exclude={"encoder"}),
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
    _check(comparison)
    encoder = _encoder(comparison)
    plans = []
    for condition in conditions_of(comparison):
        study = resolved(comparison.study(condition.dataset, condition.model, condition.seed))
        inputs = load_inputs(study, key)
        background = _background(comparison, study, inputs, key)
        methods = method_plans(comparison.methods, by_user=bool(inputs.users.parts))
        plans.append(
            ConditionPlan(condition, study, inputs, comparison.options, encoder, background, methods)
        )
    return plans


def cells_of(plans: Iterable[ConditionPlan]) -> list[Cell]:
    """All cells, in the order of the tables."""
    return [Cell(plan.condition, method.name) for plan in plans for method in plan.methods]


def _background(comparison: Comparison, study: Study, inputs: Inputs, key: bytes) -> Users:
    dataset = next(data for name, data in comparison.datasets.items() if study.name.startswith(f"{name}-"))
    if inputs.users.parts:
        return _of_parts(inputs.users, "train", "validation")
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


def _of_parts(users: Users, *parts: str) -> Users:
    kept = {alias: split for alias, split in users.splits.items() if users.parts[alias] in parts}
    return replace(users, splits=kept)


def _encoder(comparison: Comparison) -> dict[str, str]:
    """What tells the sentence encoder from another, if one is used."""
    if ENCODED not in comparison.methods:
        return {}
    from milp_ray.evaluation.baselines.rag_dense import encoder_fingerprint

    return encoder_fingerprint(comparison.options.encoder)


def _check(comparison: Comparison) -> None:
    method_plans(comparison.methods)
    problems = []
    if comparison.ray.workers_per_trial > 1:
        fact = f"is {comparison.ray.workers_per_trial}, and methods are compared on whole bases"
        remedy = "set it to 1, with a worker that holds the base (ray.gpus_per_worker)"
        problems.append(Problem("ray.workers_per_trial", fact, "1", remedy))
    if problems:
        raise StudyError("comparison", problems)
