"""One Ray Tune run over many users of a study, from their engines to told trials.

A resume is a new Tune run with replayed engines. Tune's own snapshots are not used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from ray import tune
from ray.exceptions import RayError
from ray.tune import CheckpointConfig, FailureConfig, PlacementGroupFactory, RunConfig
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.util.debug import reset_log_once

from milp_ray.errors import ClusterError, exception_site, own_words
from milp_ray.ids import trial_name
from milp_ray.layout import TUNE_LOG
from milp_ray.storage import follow, location_of, make_folder, storage_error, writing
from milp_ray.trial.records import TrialRequest
from milp_ray.tune.cluster.resources import TrialResources, on_device, trial_resources
from milp_ray.tune.proposals.overhead import SearchOverhead
from milp_ray.tune.proposals.queue import ProposalQueue
from milp_ray.tune.proposals.threads import Proposer
from milp_ray.tune.search.group_trial import GroupTrial
from milp_ray.tune.search.ledger import TrialLedger, TrialListener
from milp_ray.tune.search.scheduler import KeepActors
from milp_ray.tune.search.searcher import StudySearcher
from milp_ray.tune.search.simulated import SimulatedSpec, SimulatedTrial
from milp_ray.tune.search.trainable import MemoryTrial
from milp_ray.tune.search.watchdog import Watchdog
from milp_ray.tune.workers.failures import FailurePolicy
from milp_ray.tune.workers.trial_spec import TrialSpec
from milp_ray.tune.workers.worker_group import longest_step

if TYPE_CHECKING:
    from milp_ray.config.models import Study
    from milp_ray.search import Engine

_GRACE_SECONDS = 5.0


def run_search(
    spec: TrialSpec | SimulatedSpec,
    engines: Mapping[str, Engine],
    folder: Path,
    stop_requested: Callable[[], bool],
    listeners: Sequence[TrialListener],
    proposer: Proposer | None = None,
    overhead: SearchOverhead | None = None,
    warm_start: Callable[[Engine], object] | None = None,
    notify: Callable[[str], object] = lambda text: None,
) -> dict[str, str]:
    """Run trials until every engine has used its budget, or ``stop_requested()``.

    Args:
        spec: what all trials share; its type says whether they are simulated.
        engines: by alias; their event logs have all outcomes when this returns.
        folder: where Tune writes.
        stop_requested: polled; running trials end within a slice and stay pending in the logs.
        listeners: are told of starts and ends.
        proposer: computes plans that need a model; it outlives this run. None: a thread of the
            run's own.
        overhead: is told what the search costs.
        warm_start: see :class:`~milp_ray.tune.proposals.queue.ProposalQueue`.
        notify: is told what is waited for, and what is wrong with workers.

    Returns:
        Users whose no-memory measurement failed, and why.

    Raises:
        ClusterError: Ray gave up, or workers were lost one after the other. The outcomes so far
            are in the event logs.
        StorageError: an event log could not be written.
    """
    study = spec.study
    resources = trial_resources(study, stop_requested, notify)
    spec = dataclasses.replace(spec, study=on_device(study, resources))
    queue = ProposalQueue(
        engines,
        trials=study.search.trials,
        batch=study.search.batch,
        workers=resources.concurrent,
        proposer=proposer,
        overhead=overhead,
        warm_start=warm_start,
    )
    policy = FailurePolicy[TrialRequest](study.ray.max_failures)
    ledger = TrialLedger(engines, queue, study.objectives, policy, listeners, resources.concurrent, notify)
    try:
        _run_trials(spec, resources, ledger, lambda: queue.failed, folder, stop_requested, notify)
    finally:
        queue.stop()
        queue.join(timeout=5)
    if ledger.error is not None:
        raise ledger.error
    queue.raise_error()
    return ledger.baselines_failed


def _run_trials(
    spec: TrialSpec | SimulatedSpec,
    resources: TrialResources,
    ledger: TrialLedger,
    queue_failed: Callable[[], bool],
    folder: Path,
    stop_requested: Callable[[], bool],
    notify: Callable[[str], object],
) -> None:
    """Have Tune run the ledger's trials until there are none, or the run is to end."""

    def must_end() -> bool:
        return stop_requested() or ledger.error is not None or queue_failed()

    name = f"search-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"  # Tune resumes a name it knows
    with writing(folder):
        make_folder(folder)  # Tune would open it to everybody
    searcher = StudySearcher(ledger, stop_requested)
    watchdog = Watchdog(_heartbeat_timeout(spec.study, _is_group(spec, resources)), notify)
    tuner = tune.Tuner(
        _trainable(spec, resources),
        tune_config=_tune_config(searcher, must_end, resources.concurrent),
        run_config=_run_config(name, folder, must_end, watchdog),
    )
    _fit(tuner, ledger, folder, name)


def _fit(tuner: tune.Tuner, ledger: TrialLedger, folder: Path, name: str) -> None:
    """Run Tune to its end, and remove what it wrote but its log."""
    try:
        with _log_to(folder / TUNE_LOG):
            tuner.fit()
    except Exception as error:
        raise _explain(error, ledger, folder) from error
    finally:
        # Snapshots of a finished Tune run repeat the event logs, and a resume is a new Tune run.
        shutil.rmtree(folder / name, ignore_errors=True)
        # When Ray writes snapshots it keeps the text of every value that is not JSON, to warn once:
        # 1.4 kB per trial.
        reset_log_once()


def _is_group(spec: TrialSpec | SimulatedSpec, resources: TrialResources) -> bool:
    """Whether a group of workers runs a trial; a simulated one needs none."""
    return resources.workers_per_trial > 1 and isinstance(spec, TrialSpec)


def _trainable(spec: TrialSpec | SimulatedSpec, resources: TrialResources) -> type[tune.Trainable]:
    """The Trainable that runs trials, with the placement group that one of them takes."""
    kind: type[tune.Trainable] = SimulatedTrial if isinstance(spec, SimulatedSpec) else MemoryTrial
    bundle = dict(resources.per_worker)
    bundles = [bundle]
    if _is_group(spec, resources):
        # The Trainable itself takes nothing; its ranks do.
        kind, bundles = GroupTrial, [{}, *([bundle] * resources.workers_per_trial)]
    made: type[tune.Trainable] = tune.with_resources(
        tune.with_parameters(kind, spec=spec), PlacementGroupFactory(bundles, strategy="PACK")
    )
    made.__qualname__ = kind.__name__  # the dashboard shows this name
    return made


def _tune_config(searcher: StudySearcher, must_end: Callable[[], bool], concurrent: int) -> tune.TuneConfig:
    """Tune's settings: actors are kept, and the searcher alone knows the objectives."""
    return tune.TuneConfig(
        search_alg=searcher,
        scheduler=KeepActors(must_end, searcher.note_last_words),
        num_samples=-1,
        max_concurrent_trials=concurrent,
        reuse_actors=True,
        trial_name_creator=_name,
        trial_dirname_creator=_name,
    )


def _run_config(name: str, folder: Path, must_end: Callable[[], bool], watchdog: Watchdog) -> RunConfig:
    """The run's settings: no checkpoints, and no retries by Tune, since the ledger requeues."""
    return RunConfig(
        name=name,
        storage_path=str(folder),
        failure_config=FailureConfig(max_failures=0),
        checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
        verbose=0,
        stop=StopAfterGrace(must_end),
        callbacks=[watchdog],
    )


def _heartbeat_timeout(study: Study, is_group: bool) -> float:
    """Seconds without a sign of life after which Tune's actor counts as hung.

    A group's actor watches its ranks itself, and is silent meanwhile.
    """
    seconds = study.ray.group_timeout + study.trial.slice_seconds
    return longest_step(seconds) if is_group else seconds


class StopAfterGrace(tune.Stopper):  # type: ignore[misc]
    """Stops all trials some seconds after the run was to end.

    These are trials that wait for a node or load a base. A running trial ends by itself before
    that, between two slices (see :class:`~milp_ray.tune.search.scheduler.KeepActors`).
    """

    def __init__(self, must_end: Callable[[], bool]) -> None:
        self._must_end = must_end
        self._since: float | None = None

    def __call__(self, trial_id: str, result: Mapping[str, object]) -> bool:
        """Stop no single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether the grace period is over."""
        if not self._must_end():
            return False
        self._since = self._since or time.monotonic()
        return time.monotonic() - self._since > _GRACE_SECONDS

    def __getstate__(self) -> dict[str, object]:
        return {}


def _explain(error: Exception, ledger: TrialLedger, folder: Path) -> Exception:
    """The error that people see for a failure inside Tune: ours if any, storage, or the cluster."""
    if ledger.error is not None:
        return ledger.error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return storage_error(cause, folder)
        cause = cause.__cause__ or cause.__context__
    return ClusterError(
        f"Ray Tune gave up: {exception_site(error)}{_rays_words(error)}",
        expected="a cluster that lives as long as the search",
        remedy=f"look into {location_of(folder / TUNE_LOG)}",
    )


def _rays_words(error: BaseException) -> str:
    """The message of Tune's own code in this process; a worker's might quote a user's text."""
    frames = traceback.extract_tb(error.__traceback__)
    from_tune = bool(frames) and "/ray/tune/" in Path(frames[-1].filename).as_posix()
    if not from_tune or isinstance(error, (RayError, TuneError)):
        return ""
    return f": {own_words(error)}"


class _QuietFile(logging.FileHandler):
    """A log file that is made with its first record, and fails silently (a full disk)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, delay=True, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        follow(Path(self.baseFilename))
        return stream

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (the name is logging's)
        """Do nothing: the driver itself tells what matters."""


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send Tune's own errors to a file: tracebacks of retried trials would fill the display."""
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
    config = trial.config
    return trial_name(str(config["user"]), int(config["trial"]), str(config["placement"]))
