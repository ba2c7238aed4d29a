"""All searches of a run: a few numbers of each, and their engines when somebody needs them.

Each user is searched, or the population is, once (:mod:`milp_ray.study.units`). What is said of a
user here holds for the population as well. An engine holds a user's whole search, so only those of
the cohort at work are kept. Any other is rebuilt from its event log, which is the truth, and
dropped again. How a cohort is worked on is :mod:`milp_ray.study.run`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from milp_ray.memory.placement import Placement
from milp_ray.search import Engine, Observation
from milp_ray.search.core.events import log_is_lost
from milp_ray.study.inputs import Inputs, engine_for, objectives_of
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.selection import select
from milp_ray.study.units import units_of

_COHORT_TRIALS = 5000  # Tune's own state grows with a run's trials, and is measured to be fine up to these


@dataclass(frozen=True)
class Summary:
    """A user's search in short.

    Attributes:
        done, failed: trials that ended.
        over: whether its budget, or its space, is used up and nothing is pending.
        reference: the no-memory measurement, None while there is none.
        best: objective -> best value.
        chosen: by the study's policy; None without a measured trial.
        front: numbers of the trials on the front.
    """

    done: int = 0
    failed: int = 0
    over: bool = False
    reference: Mapping[str, float] | None = None
    best: Mapping[str, float] = field(default_factory=dict)
    chosen: Observation | None = None
    front: tuple[int, ...] = ()


class Population:
    """The searches of a run, and the users whose memories follow from them.

    Args:
        folder: of the run; its lock is held by whoever opens engines.
        inputs: of the same study.

    Attributes:
        units: whom the run searches, and for whom.
        aliases: all that is searched, in the run's order: that of the aliases.
        cold: the first of them, where users learn from each other: those that the others learn
            from.
        objectives: of the study.
    """

    def __init__(self, folder: RunFolder, inputs: Inputs) -> None:
        self._folder = folder
        self._inputs = inputs
        self._open: dict[str, Engine] = {}
        self._summaries: dict[str, Summary] = {}
        self._sizes: dict[str, int] = {}  # of event logs, in bytes, as far as they were seen
        self.units = units_of(folder.study, inputs.users)
        self.aliases = self.units.present
        search = folder.study.search
        self._everyone = self.units.begun  # with those that are gone, so that the groups stay as they were
        self._cold = search.transfer_users if search.transfer != "none" else 0
        self.cold = self._present(self._everyone[: self._cold])
        self.objectives = objectives_of(folder.study, inputs.architecture)

    def engine(self, alias: str) -> Engine:
        """A user's engine: the one at work, or one replayed from the event log."""
        if alias in self._open:
            return self._open[alias]
        self.begun(alias)
        study = self._folder.study
        engine = engine_for(study, self._inputs, alias, self._folder.layout.events(alias))
        self._sizes[alias] = engine.log_size
        return engine

    def begun(self, alias: str) -> bool:
        """Whether a user's search has begun.

        Raises:
            StorageError: it had, and its event log is gone or shorter than it was: it would begin
                anew.
        """
        log = self._folder.layout.events(alias)
        size = log.stat().st_size if log.exists() else 0
        if size < self._sizes.get(alias, 0):
            raise log_is_lost(log)
        return log.exists()

    def engines(self) -> Iterator[tuple[str, Engine]]:
        """Every user's engine, one after the other; keep none that you need not."""
        for alias in self.aliases:
            yield alias, self.engine(alias)

    @contextmanager
    def opened(self, aliases: Sequence[str]) -> Iterator[Mapping[str, Engine]]:
        """The engines of these users, kept for the length of a ``with`` block."""
        self._open.update((alias, self.engine(alias)) for alias in aliases)
        try:
            yield self._open
        finally:
            for alias, engine in self._open.items():
                self._summaries[alias] = self._summary_of(engine)
                self._sizes[alias] = engine.log_size
            self._open.clear()  # in place: the caller's name for it must keep no engine alive

    def cohorts(self) -> list[tuple[str, ...]]:
        """The users in groups, each one Tune run; the same groups in every session of a run.

        Those that run cold come first, in groups of their own.
        """
        search = self._folder.study.search
        size = search.cohort or max(1, _COHORT_TRIALS // search.trials)
        parts = (self._everyone[: self._cold], self._everyone[self._cold :])
        groups = [part[first : first + size] for part in parts for first in range(0, len(part), size)]
        return [present for group in groups if (present := self._present(group))]

    def summary(self, alias: str) -> Summary:
        """As of the last time that the user's engine was at work."""
        if alias not in self._summaries:
            begun = self.begun(alias)
            self._summaries[alias] = self._summary_of(self.engine(alias)) if begun else Summary()
        return self._summaries[alias]

    def summaries(self) -> Iterator[tuple[str, Summary]]:
        """Every user's summary."""
        for alias in self.aliases:
            yield alias, self.summary(alias)

    def finished(self, alias: str) -> bool:
        """Whether nothing of a user's search is missing, the no-memory measurement included."""
        summary = self.summary(alias)
        return summary.over and summary.reference is not None

    def chosen(self) -> dict[str, Observation]:
        """The chosen observation of every user that has a front."""
        return {alias: summary.chosen for alias, summary in self.summaries() if summary.chosen is not None}

    def placements(self) -> dict[str, Placement]:
        """The placement of each user's memory, where the search that chose it is over."""
        chosen = {alias: seen for alias, seen in self.chosen().items() if self.summary(alias).over}
        owners = ((owner, self.units.of(owner)) for owner in self.units.owners)
        return {owner: chosen[unit].placement for owner, unit in owners if unit in chosen}

    def _present(self, aliases: Sequence[str]) -> tuple[str, ...]:
        there = set(self.aliases)
        return tuple(alias for alias in aliases if alias in there)

    def _summary_of(self, engine: Engine) -> Summary:
        counts, study = engine.counts, self._folder.study
        best: dict[str, float] = {}
        for objective in self.objectives:
            values = [seen.values[objective.name] for seen in engine.observations]
            if values:
                best[objective.name] = objective.best(values)
        return Summary(
            counts.told,
            counts.failed,
            bool(engine.finished) and not counts.pending,
            engine.reference,
            best,
            select(engine, study.choose, self._inputs.architecture) if counts.told else None,
            tuple(seen.id for seen in engine.front()),
        )
