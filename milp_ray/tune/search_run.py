"""One Ray Tune run over all users of a study: from engines to told trials.

Resume is a new run with replayed engines; Tune's own snapshots are neither used nor needed.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig
from ray.tune.experiment import Trial

from milp_ray.config.models import RaySettings
from milp_ray.data.records import UserSplit
from milp_ray.errors import ClusterError
from milp_ray.ids import trial_name
from milp_ray.tune.queue import ProposalQueue
from milp_ray.tune.scheduler import KeepActors
from milp_ray.tune.searcher import Listener, StudySearcher
from milp_ray.tune.session import Session
from milp_ray.tune.trainable import MemoryTrial, TrialSpec

if TYPE_CHECKING:
    from milp_ray.search import Engine


def resources_per_trial(settings: RaySettings, session: Session) -> dict[str, float]:
    """CPUs and GPUs of one trial, ``auto`` resolved.

    Raises:
        ClusterError: the cluster as it stands could never run one.
    """
    gpus = settings.gpus_per_trial
    wanted = {
        "cpu": settings.cpus_per_trial,
        "gpu": (1.0 if session.gpus >= 1 else 0.0) if gpus == "auto" else float(gpus),
    }
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(n.get("CPU", 0) >= wanted["cpu"] and n.get("GPU", 0) >= wanted["gpu"] for n in nodes):
        largest: dict[str, float] = max(nodes, key=lambda n: (n.get("GPU", 0), n.get("CPU", 0)), default={})
        raise ClusterError(
            f"a trial asks for {wanted['cpu']:g} CPUs and {wanted['gpu']:g} GPUs, and no node has that",
            expected=f"at most {largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} GPUs per trial",
            remedy="lower ray.cpus_per_trial or ray.gpus_per_trial, or add a node",
        )
    return wanted


def concurrency(settings: RaySettings, session: Session, per_trial: Mapping[str, float]) -> int:
    """How many trials run at once: what fits, bounded by ``ray.max_concurrent``."""
    fits = session.cpus / per_trial["cpu"]
    if per_trial["gpu"]:
        fits = min(fits, session.gpus / per_trial["gpu"])
    return max(1, min(int(fits), settings.max_concurrent or int(fits)))


SharedUsers = Mapping[str, ray.ObjectRef[UserSplit]]


def share_users(users: Mapping[str, UserSplit]) -> SharedUsers:
    """Put every user's texts into Ray's object store, from where workers fetch what they need."""
    return {alias: ray.put(user) for alias, user in users.items()}


def run_search(
    spec: TrialSpec,
    engines: Mapping[str, Engine],
    session: Session,
    folder: Path,
    stopping: Callable[[], bool],
    listener: Listener,
) -> None:
    """Run trials until every engine has used its budget, or ``stopping()``.

    Args:
        spec: what all trials share.
        engines: by alias; their event logs hold all outcomes when this returns.
        session: where to run.
        folder: where Tune writes.
        stopping: polled; trials in flight end within a slice and stay pending in the logs.
        listener: told of starts and ends.

    Raises:
        ClusterError: Ray gave up (the outcomes so far are in the event logs).
        StorageError: an event log could not be written.
    """
    study = spec.study
    per_trial = resources_per_trial(study.ray, session)
    workers = concurrency(study.ray, session, per_trial)
    queue = ProposalQueue(engines, trials=study.search.trials, batch=study.search.batch, workers=workers)
    searcher = StudySearcher(engines, queue, study.objectives, stopping, listener)
    name = f"search-{time.strftime('%Y%m%d-%H%M%S')}"
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(MemoryTrial, spec=spec), per_trial),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=KeepActors(lambda: stopping() or searcher.failure is not None),
            num_samples=-1,
            max_concurrent_trials=workers,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=study.ray.max_failures),
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    try:
        with _log_to(folder / "tune.log"):
            tuner.fit()
    finally:
        queue.stop()
        queue.join(timeout=5)
        # Snapshots of a finished run repeat the event logs; a resume makes a run of its own.
        shutil.rmtree(folder / name, ignore_errors=True)
    if searcher.failure is not None:
        raise searcher.failure
    queue.raise_error()


class _QuietFile(logging.FileHandler):
    """A log file that is made when there is something to log, and never in the way (a full disk)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, delay=True, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (the name is logging's)
        """Nothing: what matters is told by the driver itself."""


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send Tune's own errors to a file: a retried trial is no news, and its traceback no progress display."""
    logger, handler = logging.getLogger("ray.tune"), _QuietFile(path)
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    others = [other for other in logger.handlers if other is not handler]
    for other in others:
        logger.removeHandler(other)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
        for other in others:
            logger.addHandler(other)
        logger.propagate = propagate


def _name(trial: Trial) -> str:
    return trial_name(str(trial.config["user"]), int(trial.config["trial"]))
