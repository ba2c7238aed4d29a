"""The final job: every user's chosen configuration trained on all it may see, then tested once.

One Ray Train run over all users. Its workers are divided into groups that train one user after
another, each group with a resident base; first every memory is trained and saved, then every user
is tested with no memory, the own memory and another user's. What is finished stays finished: Ray
Train starts lost workers again, and a user that was half way goes on from its last state
(:mod:`milp_ray.training.checkpoint`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from milp_ray.errors import ClusterError, from_plain, own_words
from milp_ray.tune.cluster.reservations import Reservation, leaked_groups_removed, reserve
from milp_ray.tune.cluster.resources import on_device, trial_resources
from milp_ray.tune.final.coordinator import Coordinator, FinalSpec, TaskResult

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

_POLL_SECONDS = 0.2
Listener = Callable[[TaskResult], None]


def run_final(
    spec: FinalSpec,
    stopping: Callable[[], bool],
    listener: Listener,
    notify: Callable[[str], object] = lambda text: None,
) -> None:
    """Train what is not trained, then test what is not tested.

    Args:
        spec: whose and which placements. Without a GPU for workers, its study is read as one on the
            CPU.
        stopping: polled; on True the groups leave what they are at, and finished users stay
            finished.
        listener: called as jobs end.
        notify: is told what is waited for, and faults after which the workers are started again.

    Raises:
        ClusterError: the cluster could not hold a group of workers, or they keep dying, or a node
            keeps failing, with no user getting on.
        StorageError: a memory or score could not be written, again and again.
        MilpRayError: the base cannot be loaded.
        KeyboardInterrupt: ``stopping()`` while an autoscaler was waited for.
    """
    study, users = spec.study, _open(spec)
    if not users:
        return
    # Asked for all of them at once: for the device alone an autoscaler would bring nodes of one
    # group first.
    worker = trial_resources(study, stopping, notify, users)
    spec = dataclasses.replace(spec, study=on_device(study, worker))
    failures = 0
    with _assigned(spec) as coordinator:
        while users:
            room = reserve(worker, stopping, notify, lambda: trial_resources(study, stopping, notify))
            if room is None:
                return
            progress = ray.get(coordinator.progress.remote())
            with contextlib.closing(room), leaked_groups_removed():
                failure = _followed(
                    _trainer(spec, room, coordinator), coordinator, stopping, listener, notify
                )
            if failure is None:
                return
            # Lost workers are Ray Train's to replace; that it gave up means that they no longer
            # fit: a smaller or later start may.
            if _found_no_room(failure):
                notify("others took the room that there was for the workers: looking again")
            else:
                failures = failures + 1 if ray.get(coordinator.progress.remote()) == progress else 1
            if failures > study.ray.max_failures:
                raise _given_up(failures, failure)
            spec.look()
            if users := _open(spec):
                worker = trial_resources(study, stopping, notify, users)


@contextlib.contextmanager
def _assigned(spec: FinalSpec) -> Iterator[Any]:
    """The coordinator, an actor on this node; gone at the end with what Ray Train wrote."""
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    coordinator: Any = (
        ray.remote(Coordinator)
        .options(num_cpus=0, scheduling_strategy=this_node, name=f"milp-ray final {spec.study.name}")
        .remote(spec, spec.study.ray.max_failures)
    )
    try:
        yield coordinator
    finally:
        ray.kill(coordinator)
        shutil.rmtree(spec.layout.train, ignore_errors=True)


def _open(spec: FinalSpec) -> int:
    """How many users can be worked on side by side: those without a memory, or without scores."""
    untrained = sum(not spec.has_memory(alias) for alias in spec.placements)
    untested = sum(not spec.layout.scores(alias).exists() for alias in spec.placements)
    return max(untrained, untested)


def _found_no_room(failure: Exception) -> bool:
    """Whether Ray Train waited for its workers' room in vain; its name for that is internal to
    it."""
    return type(getattr(failure, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def _given_up(times: int, failure: Exception) -> ClusterError:
    # What its workers raise may hold texts and stays in its logs; what its controller says is Ray's
    # own.
    rays = getattr(failure, "controller_failure", None)
    why = f"{type(rays).__name__}: {own_words(rays)}" if rays is not None else type(failure).__name__
    return ClusterError(
        f"Ray Train gave up the final job {times} times and no user got on in between ({why})",
        expected="a cluster that keeps its nodes for a while",
        remedy="look into Ray Train's logs in Ray's session folder; then resume",
    )


def _followed(
    trainer: TorchTrainer,
    coordinator: Any,
    stopping: Callable[[], bool],
    listener: Listener,
    notify: Callable[[str], object],
) -> Exception | None:
    """Run it in a thread, and tell what happens; the error that Ray Train ended with, if any.

    Stopped while it waits for room, Ray Train is left to itself, since it looks up only once a
    minute.
    """
    ended: list[Exception | None] = []

    def fit() -> None:
        try:
            trainer.fit()
            ended.append(None)
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=fit, name="final", daemon=True)
    thread.start()
    told = False
    while True:
        over = not thread.is_alive()
        update = ray.get(coordinator.update.remote())
        for result in update.results:
            listener(result)
        for fault in update.faults:
            notify(f"{fault}; the workers are started again")
        if update.fatal is not None:
            raise from_plain(update.fatal)
        if over:
            return ended[0] if ended and not told else None
        if stopping() and not told:
            told = True
            if not ray.get(coordinator.stop.remote()):
                return None
        thread.join(_POLL_SECONDS)


def _trainer(spec: FinalSpec, room: Reservation, coordinator: Any) -> TorchTrainer:
    worker = room.worker
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from milp_ray.tune.final.worker import FinalLoop, GroupsConfig, KillRanks, ReleaseReservation

    return TorchTrainer(
        FinalLoop(coordinator, worker.cpus),
        torch_config=GroupsConfig(size=worker.workers, coordinator=coordinator),
        scaling_config=ScalingConfig(
            num_workers=worker.count * worker.workers,
            use_gpu=worker.gpus > 0,
            resources_per_worker=dict(worker.resources),
        ),
        run_config=RunConfig(
            name=f"{spec.study.name}-final",
            storage_path=str(spec.layout.train),
            # How often a user is tried again, and when to give up, is the coordinator's to say:
            # with many users, a worker is lost now and then.
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=0),
            callbacks=[KillRanks(coordinator), ReleaseReservation(room.held)],
        ),
    )
