"""A run's steps in order: search, selection, final job, tables; each adds what is missing.

Every step reads what is finished from the run folder, so that a new run and a resumed one are the
same code. The search goes cohort by cohort, each a Ray Tune run of its own; the final job is one
Ray Train run, in the same session or, with ``final.automatic`` off, in one of its own. A simulated
study ends with the search: there is no model that a final job could train. Beginning and resuming a
run is :mod:`milp_ray.study.driver`.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console

from milp_ray.errors import ClusterError, MilpRayError
from milp_ray.ids import POPULATION
from milp_ray.memory.adapter_notes import check_note
from milp_ray.storage import check_intact, location_of, write_json
from milp_ray.study.inputs import Inputs, objectives_of, settings_of
from milp_ray.study.outdated import outdated
from milp_ray.study.population import Population
from milp_ray.study.progress import StudyProgress
from milp_ray.study.results import write_tables
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.saved_adapters import drop_beaten
from milp_ray.study.source_users import SourceUsers
from milp_ray.study.stopping import StopRequest, stop_on_signals
from milp_ray.study.tracked import followed
from milp_ray.tune.cluster.session import ray_session
from milp_ray.tune.proposals.overhead import SearchMetrics, SearchOverhead
from milp_ray.tune.search.prometheus import PrometheusExporter

if TYPE_CHECKING:
    from milp_ray.memory.placement import Placement
    from milp_ray.tracking.follower import Follower
    from milp_ray.tune.proposals.threads import Proposer
    from milp_ray.tune.search.simulated import SimulatedSpec
    from milp_ray.tune.workers.trial_spec import TrialSpec


@dataclass
class Outcome:
    """How a run ended. ``seconds``: of the search and the final stage, as far as worked on.

    ``metrics``: of this session's search; None if it had nothing to search. ``trained``: whether
    memories were to be trained, so that users without one count.
    """

    folder: RunFolder
    users: int
    trained: bool = False
    users_without_memory: int = 0
    users_untested: int = 0
    baselines_failed: int = 0
    trials_failed: int = 0
    interrupted: bool = False
    skipped: Mapping[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    metrics: SearchMetrics | None = None

    @property
    def exit_code(self) -> int:
        """0 done; 3 done, but some users or trials failed; 130 stopped on request."""
        if self.interrupted:
            return 130
        short = (self.users_without_memory, self.users_untested, self.baselines_failed, self.trials_failed)
        return 3 if any(short) else 0


class Run:
    """A run folder at work: its inputs, its users, and the display.

    Args:
        folder: whose lock is held.
        inputs: of the same study.
        console: where progress goes.
        search: whether what is missing of the search is made up for.
        final: whether memories are trained and tested, for those users whose search is over.
    """

    def __init__(
        self,
        folder: RunFolder,
        inputs: Inputs,
        console: Console,
        *,
        search: bool = True,
        final: bool = True,
    ) -> None:
        self.folder = folder
        self.study = folder.study
        self.inputs = inputs
        self._search_wanted = search
        self._final_wanted = final and folder.study.simulation is None
        self.population = Population(folder, inputs)
        self.units = self.population.units
        self.outcome = Outcome(folder, len(self.units.owners), skipped=inputs.users.skipped)
        aliases, objectives = list(self.population.aliases), self.population.objectives
        self._overhead = SearchOverhead()
        self._followers: list[Follower] = []
        self.progress = StudyProgress(
            console, aliases, self.study.search.trials, objectives, unit=self.units.noun
        )
        for note in inputs.users.notes:
            self.progress.notify(f"note: {note}")
        for alias, summary in self.population.summaries():
            self.progress.replayed(alias, summary)

    def work(self) -> Outcome:
        """Do what is missing, then write the tables of whatever is finished.

        Raises:
            RunFolderError: a memory is another user's, or cut short.
            ClusterError: Ray cannot be had, or gave up.
            StorageError: something cannot be written.
        """
        with followed(self.folder, self.population.aliases, self.progress.notify) as self._followers:
            outcome = self._work()
            for follower in self._followers:
                follower.close(is_done=not outcome.interrupted)
        return outcome

    def _work(self) -> Outcome:
        self._check_memories()
        over = {alias: summary.front for alias, summary in self.population.summaries() if summary.over}
        self._drop_beaten(over)  # an earlier session may have been cut off right before it
        if not self.complete():
            try:
                with ray_session(self.study.ray), stop_on_signals(self.progress.notify) as stop_requested:
                    with self.progress:
                        self._steps(stop_requested)
                    self.outcome.interrupted = stop_requested() and not self.complete()
            except MilpRayError:
                with contextlib.suppress(MilpRayError):  # what is finished can be looked at all the same
                    self._record()
                raise
        self._record()
        self.outcome.trials_failed = sum(summary.failed for _, summary in self.population.summaries())
        if self._final_wanted:
            self.outcome.trained = True
            owners = self.units.owners
            self.outcome.users_without_memory = sum(not self._has_memory(alias) for alias in owners)
            self.outcome.users_untested = sum(
                self._has_memory(alias) and not self.folder.layout.scores(alias).exists() for alias in owners
            )
        return self.outcome

    def _steps(self, stop_requested: StopRequest) -> None:
        from milp_ray.tune.cluster.dashboard import describe_job
        from milp_ray.tune.cluster.shared import check_shared

        check_shared(self.folder.root)
        describe_job({"study": self.study.name, "users": str(len(self.inputs.users.splits))})
        exporter = PrometheusExporter(self.study.name, self.progress.counts, self._overhead)
        with contextlib.closing(exporter):
            if self._search_wanted:
                self._search_all(stop_requested, exporter)
            if self._final_wanted and not stop_requested():
                self._final(stop_requested)

    def _search_all(self, stop_requested: StopRequest, exporter: PrometheusExporter) -> None:
        if not self._searched():
            self.units.check_searchable()
            self._search(stop_requested, exporter)
        if not stop_requested() and not all(summary.over for _, summary in self.population.summaries()):
            raise ClusterError(
                "Ray ended the search before all trials were done",
                where=self.folder.location,
                expected="every user's budget used up",
                remedy=f"look into {location_of(self.folder.layout.tune_log)}, then: "
                f"milp-ray resume {self.folder.location}",
            )

    def _search(self, stop_requested: StopRequest, exporter: PrometheusExporter) -> None:
        """Search cohort by cohort; end early when ``stop_requested()`` or when Ray gave up."""
        from milp_ray.tune.search.run import run_search

        began = time.monotonic()
        population = self.population
        sources = SourceUsers(self.study, self.inputs, population, self.progress.notify)
        try:
            with self._proposer() as proposer:
                for cohort in population.cohorts():
                    check_intact(self.folder.root)
                    todo = [alias for alias in cohort if not population.finished(alias)]
                    if not todo or stop_requested():
                        continue
                    with (
                        population.opened(todo) as engines,
                        exporter.watching(engines),
                        self.progress.watching(engines),
                    ):
                        failed = run_search(
                            self._spec(todo),
                            engines,
                            self.folder.layout.tune,
                            stop_requested,
                            (self.progress, exporter, *self._followers),
                            proposer=proposer,
                            overhead=self._overhead,
                            warm_start=sources.gather(todo),
                            notify=self.progress.notify,
                        )
                        self._drop_beaten(
                            {alias: [seen.id for seen in engine.front()] for alias, engine in engines.items()}
                        )
                    # Tune's trials refer to each other, and Python's own full collections are so
                    # rare in a process of this size that memory would grow from cohort to cohort.
                    gc.collect()
                    self.outcome.baselines_failed += len(failed)
                    if not all(population.summary(alias).over for alias in todo):
                        break
        finally:
            self.outcome.seconds["search"] = time.monotonic() - began
            self.outcome.metrics = self._overhead.result()

    def _drop_beaten(self, fronts: Mapping[str, Iterable[int]]) -> None:
        if self.study.simulation is None and self.study.trial.save_adapters:
            drop_beaten(self.folder, fronts)

    @property
    def _session(self) -> str:
        """The id of this driver's session, which workers publish for; "" outside one."""
        return self.folder.session.id if self.folder.session is not None else ""

    def _spec(self, aliases: Sequence[str]) -> TrialSpec | SimulatedSpec:
        """What these users' trials share, with their texts in the object store for its life."""
        from milp_ray.tune.cluster.shared import share
        from milp_ray.tune.search.simulated import SimulatedSpec
        from milp_ray.tune.workers.trial_spec import TrialSpec

        if self.study.simulation is not None:
            number = self.inputs.users.number
            numbers = {alias: number(alias) for alias in aliases}
            members = {alias: [number(user) for user in self.units.members(alias)] for alias in aliases}
            return SimulatedSpec(self.study, self.inputs.architecture, numbers, members)
        units = share({alias: self.units.unit(alias) for alias in aliases})
        return TrialSpec(self.study, units, self.folder.root, self._session)

    @contextlib.contextmanager
    def _proposer(self) -> Iterator[Proposer | None]:
        """Who fits models, for all cohorts of this session; None where no model is fitted.

        It imports and compiles what the first fits need beside the initial trials. Not before Ray
        has started its processes: a fork after JAX has started its threads may deadlock.
        """
        from milp_ray.tune.proposals.actors import make_proposer
        from milp_ray.tune.proposals.threads import WarmUp, is_free

        search = self.study.search
        if is_free(search.surrogate) or search.trials <= search.initial:
            yield None
            return
        inputs = self.inputs
        objectives = objectives_of(self.study, inputs.architecture)
        warm_up = WarmUp(inputs.space, objectives, settings_of(self.study, inputs.space))
        proposer = make_proposer(self.study, warm_up)
        try:
            yield proposer
        finally:
            proposer.close()

    def _final(self, stop_requested: StopRequest) -> None:
        from milp_ray.tune.cluster.shared import share
        from milp_ray.tune.final.coordinator import FinalSpec, TaskResult
        from milp_ray.tune.final.run import run_final

        began = time.monotonic()
        check_intact(self.folder.root)
        placements = self.population.placements()
        self._drop_outdated(placements)
        users = {alias: self.inputs.users.splits[alias] for alias in placements if not self._tested(alias)}
        shared = self._shared(placements)
        if self.units.shared is not None:
            users[POPULATION] = self.units.shared
        spec = FinalSpec(self.study, share(users), placements, self.folder.root, self._session, shared)
        done = {
            "train": sum(self._has_memory(alias) for alias in placements),
            "test": sum(self.folder.layout.scores(alias).exists() for alias in placements),
        }

        self.progress.trained(done["train"])

        def listener(event: TaskResult) -> None:
            for note in event.notes:
                self.progress.notify(f"{event.alias} final {event.step}: {note}")
            if event.reason:
                self.progress.notify(f"{event.alias} final {event.step} failed: {event.reason}")
                return
            if event.step == "share":
                self.progress.notify("final: the adapter that all memories start from is trained")
                return
            done[event.step] += 1
            for follower in self._followers:
                follower.changed(event.alias)
            self.progress.final_step(event.step, done[event.step], len(placements))

        run_final(spec, stop_requested, listener, self.progress.notify)
        spec.pull()
        self.outcome.seconds["final"] = time.monotonic() - began

    def _shared(self, placements: Mapping[str, Placement]) -> Placement | None:
        """The placement of the adapter that all memories start from, where there is one."""
        return next(iter(placements.values()), None) if self.units.shared is not None else None

    def _drop_outdated(self, placements: Mapping[str, Placement]) -> None:
        """Delete memories and scores of an earlier choice, as a run with more trials may hold."""
        if (shared := self._shared(placements)) is not None:
            placements = {**placements, POPULATION: shared}
        found = outdated(self.folder, self.inputs.architecture, placements)
        if found.memories:
            count = len(found.memories - {POPULATION})
            self.progress.notify(
                f"{count} users have another choice than before; their memories are made again"
            )
        found.remove(self.folder)

    def _searched(self) -> bool:
        return all(self.population.finished(alias) for alias in self.population.aliases)

    def complete(self) -> bool:
        """Whether there is nothing left to do but the tables."""
        if self._search_wanted and not self._searched():
            return False
        if not self._final_wanted:
            return True
        placements = self.population.placements()
        return all(self.folder.layout.scores(alias).exists() for alias in placements) and not (
            outdated(self.folder, self.inputs.architecture, placements).scores
        )

    def _check_memories(self) -> None:
        """Make sure that every memory is its user's own, before anything is done.

        A memory of an earlier choice is no fault: the final job makes it again.

        Raises:
            RunFolderError: one is not.
        """
        if self._final_wanted:
            for alias in (*self.units.owners, *([POPULATION] if self.units.shared is not None else [])):
                check_note(self.folder.layout.memory(alias), user=alias)

    def _tested(self, alias: str) -> bool:
        return self._has_memory(alias) and self.folder.layout.scores(alias).exists()

    def _has_memory(self, alias: str) -> bool:
        return self.folder.layout.memory_config(alias).exists()

    def _record(self) -> None:
        write_tables(self.folder, self.population, self.inputs.architecture)
        if self.outcome.metrics is not None and self.outcome.metrics.workers:
            path = self.folder.layout.table("search_metrics").with_suffix(".json")
            write_json(path, self.outcome.metrics.to_plain())
