"""The final job: every user's chosen configuration trained on all it may see, then tested once.

It is one Ray Train run over all users. Its workers are divided into groups, each with a resident
base, and a group takes one user after another. First every memory is trained and saved. Then every
user is tested with no memory, the own memory and another user's. What is finished stays finished:
Ray Train starts lost workers again, and a user that was half way goes on from its last state
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
from milp_ray.tune.cluster.reservations import Reservation, remove_leaked_groups, reserve
from milp_ray.tune.cluster.resources import on_device, trial_resources
from milp_ray.tune.final.coordinator import Coordinator, FinalSpec, TaskResult
from milp_ray.tune.workers.failures import FailurePolicy, Loss

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

_POLL_SECONDS = 0.2
Listener = Callable[[TaskResult], None]


def run_final(
    spec: FinalSpec,
    stop_requested: Callable[[], bool],
    listener: Listener,
    notify: Callable[[str], object] = lambda text: None,
) -> None:
    """Train what is not trained, then test what is not tested.

    Args:
        spec: the users and their placements. Without a GPU for workers, its study is read as one on
            the CPU.
        stop_requested: polled; on True the groups leave their tasks, and finished users stay
            finished.
        listener: called as tasks end.
        notify: is told what is waited for, and faults after which the workers are started again.

    Raises:
        ClusterError: the cluster could not hold a group of workers, or workers keep dying, or a
            node keeps failing, and no user gets on.
        StorageError: a memory or score could not be written, again and again.
        MilpRayError: the base cannot be loaded.
        KeyboardInterrupt: ``stop_requested()`` while an autoscaler was waited for.
    """
    study, users = spec.study, _unfinished_users(spec)
    if not users:
        return
    # All groups are asked for at once: asked for the device alone, an autoscaler would bring the
    # nodes of one group first.
    resources = trial_resources(study, stop_requested, notify, users)
    spec = dataclasses.replace(spec, study=on_device(study, resources))
    retries = study.ray.max_failures
    policy = FailurePolicy[str](retries, limit=retries + 1, given_up=_given_up)
    with _coordinator(spec) as coordinator:
        while users:
            reservation = reserve(
                resources, stop_requested, notify, lambda: trial_resources(study, stop_requested, notify)
            )
            if reservation is None:
                return
            progress = ray.get(coordinator.progress.remote())
            with contextlib.closing(reservation), remove_leaked_groups():
                failure = _fit(
                    _trainer(spec, reservation, coordinator), coordinator, stop_requested, listener, notify
                )
            if failure is None:
                return
            # Ray Train itself replaces lost workers. It gives up where they no longer fit: a
            # smaller or later start may.
            if _is_startup_timeout(failure):
                notify("others took the room that there was for the workers: looking again")
            else:
                if ray.get(coordinator.progress.remote()) > progress:
                    policy.settle()
                if error := policy.lost(Loss(last_words=_why(failure))).ends:
                    raise error
            spec.pull()
            if users := _unfinished_users(spec):
                resources = trial_resources(study, stop_requested, notify, users)


@contextlib.contextmanager
def _coordinator(spec: FinalSpec) -> Iterator[Any]:
    """The coordinator, an actor on this node; removed at the end, with what Ray Train wrote."""
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


def _unfinished_users(spec: FinalSpec) -> int:
    """How many users can be worked on side by side: those without a memory, or without scores."""
    untrained = sum(not spec.has_memory(alias) for alias in spec.placements)
    untested = sum(not spec.layout.scores(alias).exists() for alias in spec.placements)
    return max(untrained, untested)


def _is_startup_timeout(failure: Exception) -> bool:
    """Whether Ray Train waited for its workers' resources in vain.

    Its name for that is internal to Ray Train.
    """
    return type(getattr(failure, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def _why(failure: Exception) -> str:
    """Why Ray Train gave up, in its controller's own words.

    What its workers raise may hold texts, and stays in its logs.
    """
    rays = getattr(failure, "controller_failure", None)
    return f"{type(rays).__name__}: {own_words(rays)}" if rays is not None else type(failure).__name__


def _given_up(times: int, why: str) -> ClusterError:
    return ClusterError(
        f"Ray Train gave up the final job {times} times and no user got on in between ({why})",
        expected="a cluster that keeps its nodes for a while",
        remedy="look into Ray Train's logs in Ray's session folder; then resume",
    )


def _fit(
    trainer: TorchTrainer,
    coordinator: Any,
    stop_requested: Callable[[], bool],
    listener: Listener,
    notify: Callable[[str], object],
) -> Exception | None:
    """Run Ray Train in a thread, and tell what happens; the error that it ended with, if any.

    Where the run is stopped while Ray Train waits for resources, Ray Train is left to itself, since
    it looks up only once a minute.
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
        if stop_requested() and not told:
            told = True
            if not ray.get(coordinator.stop.remote()):
                return None
        thread.join(_POLL_SECONDS)


def _trainer(spec: FinalSpec, reservation: Reservation, coordinator: Any) -> TorchTrainer:
    resources = reservation.resources
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from milp_ray.tune.final.worker import FinalLoop, GroupsConfig, KillRanks, ReleaseReservation

    return TorchTrainer(
        FinalLoop(coordinator, resources.cpus_per_worker),
        torch_config=GroupsConfig(size=resources.workers_per_trial, coordinator=coordinator),
        scaling_config=ScalingConfig(
            num_workers=resources.concurrent * resources.workers_per_trial,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=dict(resources.per_worker),
        ),
        run_config=RunConfig(
            name=f"{spec.study.name}-final",
            storage_path=str(spec.layout.train),
            # The coordinator decides how often a user is tried again, and when to give up: with
            # many users, a worker is lost now and then.
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=0),
            callbacks=[KillRanks(coordinator), ReleaseReservation(reservation.placement_groups)],
        ),
    )
