"""A run's searches as Optuna studies: plain data, before any store is opened.

One study per user, or the population's, named ``<study>/<alias>``. A trial has the number of ours,
the parameters that Ax sees of it, its values in the objectives' units, and what it took. Gates and
ranks are categorical: Optuna's importance rates a gate that is a whole number three times as high
as the same one as a category. The no-memory measurement is no trial, since it has no parameters.
What may change until the run is over stands in the study's attributes, since Optuna lets nobody
change a trial that ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from milp_ray.config.objectives import Objective
from milp_ray.errors import MilpRayError
from milp_ray.ids import POPULATION, is_alias
from milp_ray.layout import EVENTS
from milp_ray.memory.space import MemorySpace
from milp_ray.search.core.events import events_so_far, values_by_user
from milp_ray.search.replay import search_of
from milp_ray.storage import names_in
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.selection import select_from_log
from milp_ray.study.tables import known_scores
from milp_ray.study.tracked import begun_at, run_digest
from milp_ray.tracking.records import TrackedTrial, tracked_trials
from milp_ray.trial.records import TrialTimes

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from milp_ray.search.view import SearchView

RUN = "milp_ray.run"  # attribute of a study that says of which run it is
PLACEMENT = "placement"  # attribute of a trial, by which ours are told from others'


_TIMES = {one.name for one in fields(TrialTimes)} - {"lost_seconds"}  # which Optuna has itself


@dataclass(frozen=True)
class PlainStudy:
    """One search, as Optuna has it.

    Attributes:
        name: of the study.
        objectives: what is optimised, in order.
        attributes: of the study; JSON values by name.
        distributions: by parameter.
        trials: all of them, by number from 0 on.
        by_user: of a population's trial, what each of its users measured.
    """

    name: str
    objectives: tuple[Objective, ...]
    attributes: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    trials: tuple[TrackedTrial, ...]
    by_user: Mapping[int, Mapping[str, Mapping[str, float]]]

    def attributes_of(self, trial: TrackedTrial) -> dict[str, Any]:
        """A trial's user attributes."""
        found: dict[str, Any] = {PLACEMENT: trial.placement, "proposed_by": trial.source}
        if trial.reason:
            found["reason"] = trial.reason
        found |= {name: value for name, value in trial.cost.items() if name not in _TIMES}
        if not trial.is_timed:
            found["times"] = "laid one after the other: the log has durations alone"
        if trial.number in self.by_user:
            found["by_user"] = {alias: dict(values) for alias, values in self.by_user[trial.number].items()}
        return found


def searched(folder: RunFolder) -> list[str]:
    """Aliases of all searches that have begun, or the population's name."""
    names = (
        name.removesuffix(".jsonl") for name in names_in(folder.root / EVENTS) if name.endswith(".jsonl")
    )
    return sorted(name for name in names if is_alias(name) or name == POPULATION)


def plain_studies(folder: RunFolder, unreadable: list[str]) -> Iterator[PlainStudy]:
    """Every search that has asked for a trial.

    Args:
        folder: of the run; it is only read.
        unreadable: gets the aliases whose logs are damaged; the others go on.
    """
    run, begun = run_digest(folder), begun_at(folder)
    for alias in searched(folder):
        try:
            found = _plain_study(folder, alias, run, begun)
        except MilpRayError:
            unreadable.append(alias)
            continue
        if found is not None:
            yield found


def _plain_study(folder: RunFolder, alias: str, run: str, begun: float) -> PlainStudy | None:
    log = folder.layout.events(alias)
    view = search_of(events_so_far(log), log)
    if view is None or not view.proposals:
        return None
    by_user: dict[int, dict[str, Mapping[str, float]]] = {}
    for number, user, values in values_by_user(log):
        if number is not None:
            by_user.setdefault(number, {})[user] = values
    return PlainStudy(
        f"{folder.study.name}/{alias}",
        view.objectives,
        {RUN: run, "milp_ray.study": folder.study.name, "user": alias} | _outcome(folder, alias, view),
        _distributions(view.space),
        tuple(tracked_trials(view, begun)),
        by_user,
    )


def _outcome(folder: RunFolder, alias: str, view: SearchView) -> dict[str, Any]:
    """What a search has come to: where it began, its front, the choice, and the test."""
    found: dict[str, Any] = {}
    if view.reference is not None:
        found["no_memory"] = dict(view.reference)
    if front := view.front():
        found["front"] = [seen.id for seen in front]
    if (chosen := select_from_log(view, folder.study.choose)) is not None:
        found["chosen"] = chosen.id
    if alias != POPULATION:
        scores = known_scores(alias, folder.layout.scores(alias))
        found |= {f"test_{model}": values for model, values in scores.items()}
    return found


def _distributions(space: MemorySpace) -> dict[str, BaseDistribution]:
    """A range of more than two numbers is one; whatever else varies is a category."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for parameter in (one for factor in space.factors for one in factor.parameters):
        values = parameter.values
        if isinstance(values, range) and len(values) > 2:
            found[parameter.name] = IntDistribution(values[0], values[-1])
        else:
            found[parameter.name] = CategoricalDistribution(tuple(values))
    return found
