"""The driver of a run: search, fronts, choice, final stage, tables and plots, in one resumable sequence.

Every step reads what is finished from the run folder and adds what is missing, so that a new run and a
resumed one are the same code. The steps themselves are elsewhere; here is their order.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from milp_ray.config.loading import load_study, resolved
from milp_ray.config.models import Study
from milp_ray.errors import Problem, RunFolderError, StorageError, StudyError
from milp_ray.ids import child, new_key
from milp_ray.memory.space import Placement
from milp_ray.search import Engine, Observation
from milp_ray.search.surrogates import check_surrogate
from milp_ray.study.choose import choose
from milp_ray.study.inputs import Inputs, engine_for, load_inputs
from milp_ray.study.progress import StudyProgress
from milp_ray.study.run_folder import RunFolder, refuse_existing
from milp_ray.study.stopping import StopRequest, stop_on_signals
from milp_ray.study.tables import (
    chosen_table,
    hypervolume_table,
    scores_table,
    trials_table,
    write_table,
)
from milp_ray.tune.session import Session, ray_session


@dataclass
class Outcome:
    """How a run ended. ``seconds``: of the search and of the final stage."""

    folder: RunFolder
    users: int
    users_without_memory: int = 0
    trials_failed: int = 0
    interrupted: bool = False
    skipped: Mapping[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 done; 3 done, but some users or trials failed; 130 stopped on request."""
        if self.interrupted:
            return 130
        return 3 if self.users_without_memory or self.trials_failed else 0


def start(study: Study, console: Console) -> Outcome:
    """A new run of a study.

    Raises:
        MilpRayError: the study, data, model, storage or cluster is not usable. Nothing is left half-made.
    """
    study = resolved(study)
    refuse_existing(child(Path(study.storage.path), study.name))
    check_surrogate(study.search.surrogate)
    key = new_key()
    inputs = load_inputs(study, key)
    folder = RunFolder.create(study, inputs.users.fingerprint, key)
    return _run(folder, inputs, console)


def resume(path: Path | str, console: Console, overrides: Sequence[str] = ()) -> Outcome:
    """Go on with a run after any interruption; a finished run is only tabulated again.

    Args:
        path: the run folder.
        console: where progress goes.
        overrides: ``ray.key=value`` only: where a run is worked on may change, what it is may not.

    Raises:
        StudyError: another override.
        MilpRayError: as :func:`start`, or there is no run, or its data has changed.
    """
    folder = RunFolder.open(path)
    if overrides:
        _only_ray(overrides)
        folder.study = load_study(folder.root / "study.yaml", overrides)
    return _run(folder, load_inputs(folder.study, folder.key, folder.fingerprint), console)


def _only_ray(overrides: Sequence[str]) -> None:
    problems = [
        Problem(
            f"override {text.partition('=')[0]}",
            "a resumed run keeps its study",
            "ray.<key>=<value>",
            "start a new run under another name for other settings",
        )
        for text in overrides
        if not text.startswith("ray.")
    ]
    if problems:
        raise StudyError("resume", problems)


def engines_of(folder: RunFolder, inputs: Inputs) -> dict[str, Engine]:
    """Every user's engine, replayed from the event logs."""
    return {
        alias: engine_for(folder.study, inputs, index, folder.events(alias))
        for index, alias in enumerate(inputs.users.splits)
    }


def _run(folder: RunFolder, inputs: Inputs, console: Console) -> Outcome:
    outcome = Outcome(folder, len(inputs.users.splits), skipped=inputs.users.skipped)
    with folder.lock():
        engines = engines_of(folder, inputs)
        study = folder.study
        directions = {o.name: o.direction for o in next(iter(engines.values())).objectives}
        progress = StudyProgress(console, list(engines), study.search.trials, directions)
        _replay(progress, engines)
        if not _complete(folder, engines):
            with ray_session(study.ray) as session, stop_on_signals(progress.say) as stopping:
                _prepare(next(iter(engines.values())), study)
                with progress:
                    _search(folder, inputs, engines, session, stopping, progress, outcome)
                    if not stopping():
                        _final(folder, inputs, engines, session, stopping, progress, outcome)
                outcome.interrupted = stopping()
        _record(folder, inputs, engines)
    outcome.trials_failed = sum(len(engine.failures) for engine in engines.values())
    outcome.users_without_memory = sum(not _has_memory(folder, alias) for alias in engines)
    return outcome


def _replay(progress: StudyProgress, engines: Mapping[str, Engine]) -> None:
    for alias, engine in engines.items():
        progress.replayed(alias, len(engine.observations), len(engine.failures))
        if engine.reference is not None:
            progress.observed(alias, -1, engine.reference)
        for seen in engine.observations:
            progress.observed(alias, seen.id, seen.values)


def _prepare(engine: Engine, study: Study) -> None:
    """Import and compile what the first fits need, beside the initial trials.

    Not before Ray has started its processes: a fork after JAX has started its threads may deadlock.
    """
    search = study.search

    def work() -> None:
        from milp_ray.search.prepare import prepare

        with contextlib.suppress(StorageError):  # without the cache folder everything still works, later
            prepare(engine=engine, trials=search.initial + search.batch)

    if search.surrogate not in ("random", "sobol") and search.trials > search.initial:
        threading.Thread(target=work, name="prepare", daemon=True).start()


def _search(
    folder: RunFolder,
    inputs: Inputs,
    engines: Mapping[str, Engine],
    session: Session,
    stopping: StopRequest,
    progress: StudyProgress,
    outcome: Outcome,
) -> None:
    from milp_ray.tune.search_run import run_search, share_users
    from milp_ray.tune.trainable import TrialSpec

    began = time.monotonic()
    spec = TrialSpec(
        folder.study, share_users(inputs.users.splits), folder.root / "events", folder.root / "adapters"
    )
    if not all(_searched(engine, folder.study) for engine in engines.values()):
        run_search(spec, engines, session, folder.tune, stopping, progress)
    outcome.seconds["search"] = time.monotonic() - began


def _complete(folder: RunFolder, engines: Mapping[str, Engine]) -> bool:
    return all(
        _searched(engine, folder.study) and (folder.scores(alias).exists() or not engine.front())
        for alias, engine in engines.items()
    )


def _searched(engine: Engine, study: Study) -> bool:
    ended = len(engine.observations) + len(engine.failures)
    return not engine.pending and (ended >= study.search.trials or bool(engine.finished))


def _choose_all(folder: RunFolder, inputs: Inputs, engines: Mapping[str, Engine]) -> dict[str, Observation]:
    settings = folder.study.choose
    return {
        alias: choose(front, engine.objectives, settings, inputs.architecture)
        for alias, engine in engines.items()
        if (front := engine.front())
    }


def _final(
    folder: RunFolder,
    inputs: Inputs,
    engines: Mapping[str, Engine],
    session: Session,
    stopping: StopRequest,
    progress: StudyProgress,
    outcome: Outcome,
) -> None:
    from milp_ray.tune.final import FinalSpec, run_final
    from milp_ray.tune.search_run import concurrency, resources_per_trial, share_users

    began = time.monotonic()
    chosen = _choose_all(folder, inputs, engines)
    placements: dict[str, Placement] = {alias: seen.placement for alias, seen in chosen.items()}
    users = {alias: inputs.users.splits[alias] for alias in placements}
    spec = FinalSpec(
        folder.study, share_users(users), placements, folder.root / "memories", folder.root / "scores"
    )
    done = {
        "train": sum(_has_memory(folder, alias) for alias in placements),
        "test": sum(folder.scores(alias).exists() for alias in placements),
    }

    def listener(step: str, alias: str, reason: str) -> None:
        if reason:
            progress.say(f"{alias} final {step} failed: {reason}")
            return
        done[step] += 1
        progress.final_step(step, done[step], len(placements))

    per_worker = resources_per_trial(folder.study.ray, session)
    run_final(spec, per_worker, concurrency(folder.study.ray, session, per_worker), stopping, listener)
    outcome.seconds["final"] = time.monotonic() - began


def _has_memory(folder: RunFolder, alias: str) -> bool:
    return (folder.memory(alias) / "adapter_config.json").exists()


def _record(folder: RunFolder, inputs: Inputs, engines: Mapping[str, Engine]) -> None:
    """Write the tables of whatever is finished."""
    chosen = _choose_all(folder, inputs, engines)
    trials = trials_table(engines, inputs.architecture)
    if trials.empty:
        return
    policy = folder.study.choose.policy
    write_table(trials, folder.table("trials"))
    write_table(trials[trials.on_front], folder.table("fronts"))
    write_table(chosen_table(chosen, policy, inputs.architecture), folder.table("chosen"))
    write_table(scores_table({alias: folder.scores(alias) for alias in engines}), folder.table("scores"))
    write_table(hypervolume_table(engines), folder.table("hypervolume"))


def save_experiment(folder: RunFolder, user: str) -> Path:
    """Save a user's search as an Ax experiment, the record that Ax's own tools open; returns its path.

    Raises:
        RunFolderError: the run has no such user.
    """
    from milp_ray.search.experiment import build_client, save_client

    inputs = load_inputs(folder.study, folder.key, folder.fingerprint)
    alias = folder.alias(user)
    engine = engines_of(folder, inputs).get(alias)
    if engine is None:
        raise RunFolderError(
            "the run has no such user",
            where=str(folder.root),
            expected="a raw user id or an alias of the run",
            remedy="list the aliases with: milp-ray fronts RUN",
        )
    path = folder.experiment(alias)
    save_client(build_client(alias, engine), path)
    return path
