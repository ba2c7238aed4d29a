"""One run's steps in their order: search, choice, final stage, tables. Each adds only what is missing.

Every step reads what is finished from the run folder, so that a new run and a resumed one are the same code.
Beginning and resuming a run is :mod:`milp_ray.study.driver`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from milp_ray.errors import ClusterError, MilpRayError, StorageError
from milp_ray.search import Engine, Observation
from milp_ray.study.choose import choose
from milp_ray.study.inputs import Inputs, engine_for
from milp_ray.study.progress import StudyProgress
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.stopping import StopRequest, stop_on_signals
from milp_ray.study.tables import (
    chosen_table,
    hypervolume_table,
    scores_table,
    trials_table,
    write_table,
)
from milp_ray.tune.session import ray_session

if TYPE_CHECKING:
    from milp_ray.tune.search_run import SharedUsers


# A quarter of a second each; those of larger populations are made on request (`milp-ray experiment`).
_MOST_EXPERIMENTS = 50


@dataclass
class Outcome:
    """How a run ended. ``seconds``: of the search and of the final stage, as far as they were worked on."""

    folder: RunFolder
    users: int
    users_without_memory: int = 0
    users_untested: int = 0
    baselines_failed: int = 0
    trials_failed: int = 0
    interrupted: bool = False
    skipped: Mapping[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 done; 3 done, but some users or trials failed; 130 stopped on request."""
        if self.interrupted:
            return 130
        short = (self.users_without_memory, self.users_untested, self.baselines_failed, self.trials_failed)
        return 3 if any(short) else 0


class Run:
    """A run folder at work: its inputs, every user's engine replayed from the event logs, and the display.

    Args:
        folder: whose lock is held.
        inputs: of the same study.
        console: where progress goes.
    """

    def __init__(self, folder: RunFolder, inputs: Inputs, console: Console) -> None:
        self.folder = folder
        self.study = folder.study
        self.inputs = inputs
        self.engines = engines_of(folder, inputs)
        self.outcome = Outcome(folder, len(inputs.users.splits), skipped=inputs.users.skipped)
        directions = {o.name: o.direction for o in next(iter(self.engines.values())).objectives}
        self.progress = StudyProgress(console, list(self.engines), self.study.search.trials, directions)
        self._replay()

    def work(self) -> Outcome:
        """Do what is missing, then write the tables of whatever is finished.

        Raises:
            ClusterError: Ray cannot be had, or gave up.
            StorageError: something cannot be written.
        """
        if not self._complete():
            try:
                with ray_session(self.study.ray), stop_on_signals(self.progress.say) as stopping:
                    with self.progress:
                        self._steps(stopping)
                    self.outcome.interrupted = stopping() and not self._complete()
            except MilpRayError:
                with contextlib.suppress(MilpRayError):  # what is finished can be looked at all the same
                    self._record()
                raise
        self._record()
        self.outcome.trials_failed = sum(len(engine.failures) for engine in self.engines.values())
        self.outcome.users_without_memory = sum(not self._has_memory(alias) for alias in self.engines)
        self.outcome.users_untested = sum(
            self._has_memory(alias) and not self.folder.scores(alias).exists() for alias in self.engines
        )
        return self.outcome

    def chosen(self) -> dict[str, Observation]:
        """The chosen observation of every user that has a front."""
        settings, architecture = self.study.choose, self.inputs.architecture
        return {
            alias: choose(engine, settings, architecture)
            for alias, engine in self.engines.items()
            if engine.observations
        }

    def _replay(self) -> None:
        for alias, engine in self.engines.items():
            self.progress.replayed(alias, len(engine.observations), len(engine.failures))
            if engine.reference is not None:
                self.progress.observed(alias, -1, engine.reference)
            for seen in engine.observations:
                self.progress.observed(alias, seen.id, seen.values)

    def _steps(self, stopping: StopRequest) -> None:
        from milp_ray.tune.search_run import check_shared, share_users

        check_shared(self.folder.root)
        users = share_users(self.inputs.users.splits)
        if not self._searched() or not self._has_baselines():
            self._search(stopping, users)
        if stopping():
            return
        if not self._searched():
            raise ClusterError(
                "Ray ended the search before all trials were done",
                where=str(self.folder.root),
                expected="every user's budget used up",
                remedy=f"look into {self.folder.tune / 'tune.log'}, then: milp-ray resume {self.folder.root}",
            )
        self._final(stopping, users)

    def _search(self, stopping: StopRequest, users: SharedUsers) -> None:
        from milp_ray.tune.search_run import run_search
        from milp_ray.tune.trainable import TrialSpec

        began = time.monotonic()
        self._prepare()
        root = self.folder.root
        spec = TrialSpec(self.study, users, root / "events", root / "adapters")
        failed = run_search(spec, self.engines, self.folder.tune, stopping, self.progress)
        self.outcome.baselines_failed = len(failed)
        self.outcome.seconds["search"] = time.monotonic() - began

    def _prepare(self) -> None:
        """Import and compile what the first fits need, beside the initial trials.

        Not before Ray has started its processes: a fork after JAX has started its threads may deadlock.
        """
        search, engine = self.study.search, next(iter(self.engines.values()))

        def work() -> None:
            from milp_ray.search.prepare import prepare

            with contextlib.suppress(StorageError):  # without the cache folder everything still works, later
                prepare(engine=engine, trials=search.initial + search.batch)

        if search.surrogate not in ("random", "sobol") and search.trials > search.initial:
            threading.Thread(target=work, name="prepare", daemon=True).start()

    def _final(self, stopping: StopRequest, users: SharedUsers) -> None:
        from milp_ray.tune.final import FinalSpec, run_final
        from milp_ray.tune.search_run import on_device, slots

        began = time.monotonic()
        placements = {alias: seen.placement for alias, seen in self.chosen().items()}
        root = self.folder.root
        worker = slots(self.study)
        study = on_device(self.study, worker)
        spec = FinalSpec(study, users, placements, root / "memories", root / "scores")
        done = {
            "train": sum(self._has_memory(alias) for alias in placements),
            "test": sum(self.folder.scores(alias).exists() for alias in placements),
        }

        def listener(step: str, alias: str, reason: str) -> None:
            if reason:
                self.progress.say(f"{alias} final {step} failed: {reason}")
                return
            done[step] += 1
            self.progress.final_step(step, done[step], len(placements))

        run_final(spec, worker, stopping, listener)
        self.outcome.seconds["final"] = time.monotonic() - began

    def _searched(self) -> bool:
        return all(_finished(engine, self.study.search.trials) for engine in self.engines.values())

    def _has_baselines(self) -> bool:
        return all(engine.reference is not None for engine in self.engines.values())

    def _complete(self) -> bool:
        return (
            self._searched()
            and self._has_baselines()
            and all(
                self.folder.scores(alias).exists() or not engine.front()
                for alias, engine in self.engines.items()
            )
        )

    def _has_memory(self, alias: str) -> bool:
        return (self.folder.memory(alias) / "adapter_config.json").exists()

    def _record(self) -> None:
        folder, engines, architecture = self.folder, self.engines, self.inputs.architecture
        trials = trials_table(engines, architecture)
        if trials.empty:
            return
        chosen = chosen_table(self.chosen(), self.study.choose.policy, architecture)
        write_table(trials, folder.table("trials"))
        write_table(trials[trials.on_front], folder.table("fronts"))
        write_table(chosen, folder.table("chosen"))
        write_table(scores_table({alias: folder.scores(alias) for alias in engines}), folder.table("scores"))
        write_table(hypervolume_table(engines), folder.table("hypervolume"))
        if self._searched() and len(engines) <= _MOST_EXPERIMENTS:
            for alias in engines:
                save_experiment(folder, alias, engines[alias])


def engines_of(folder: RunFolder, inputs: Inputs) -> dict[str, Engine]:
    """Every user's engine, replayed from the event logs."""
    return {
        alias: engine_for(folder.study, inputs, index, folder.events(alias))
        for index, alias in enumerate(inputs.users.splits)
    }


def save_experiment(folder: RunFolder, alias: str, engine: Engine) -> Path:
    """Save a user's search as an Ax experiment, the record that Ax's own tools open; returns its path.

    An experiment that is newer than the event log is left as it is.
    """
    path = folder.experiment(alias)
    if not path.exists() or path.stat().st_mtime < folder.events(alias).stat().st_mtime:
        from milp_ray.search.experiment import build_client, save_client

        save_client(build_client(alias, engine), path)
    return path


def _finished(engine: Engine, trials: int) -> bool:
    ended = len(engine.observations) + len(engine.failures)
    return not engine.pending and (ended >= trials or bool(engine.finished))
