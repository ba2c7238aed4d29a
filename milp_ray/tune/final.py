"""The final job: every user's chosen configuration trained on all it may see, then tested once.

One Ray Train run over all users. Its workers are divided into groups that train one user after another, each
group with a resident base; first every memory is trained and saved, then every user is tested with no memory,
the own memory and another user's. What is finished stays finished: Ray Train starts lost workers again, and a
user that was half way goes on from its last state (:mod:`milp_ray.training.checkpoint`).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from milp_ray.errors import ClusterError, from_plain
from milp_ray.tune.assignments import Assignments, Event, FinalSpec
from milp_ray.tune.slots import Slots, on_device

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

_POLL_SECONDS = 0.2
_SCRATCH = "train"  # Ray Train's own files; what counts is in memories, scores and checkpoints
Listener = Callable[[Event], None]


def run_final(
    spec: FinalSpec, slots: Callable[[int], Slots], stopping: Callable[[], bool], listener: Listener
) -> None:
    """Train what is not trained, then test what is not tested.

    Args:
        spec: whose and which placements. Without a GPU for workers, its study is read as one on the CPU.
        slots: what a worker takes, how many make a group, and how many of so many groups can be started
            together now.
        stopping: polled; on True the groups leave what they are at, and finished users stay finished.
        listener: called as jobs end.

    Raises:
        ClusterError: workers cannot be had, or keep dying with no user getting on.
        MilpRayError: the base cannot be loaded, or a memory or score could not be written.
    """
    open_users = _open(spec)
    if not open_users:
        return
    # Asked for all of them at once: for the device alone an autoscaler would bring nodes of one group first.
    worker = slots(open_users)
    spec = dataclasses.replace(spec, study=on_device(spec.study, worker))
    retries = spec.study.ray.max_failures
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    assignments: Any = (
        ray.remote(Assignments)
        .options(num_cpus=0, scheduling_strategy=this_node, name=f"milp-ray final {spec.study.name}")
        .remote(spec, retries)
    )
    try:
        failures = 0
        while open_users:
            moved = ray.get(assignments.moved.remote())
            trainer = _trainer(spec, worker, assignments)
            failure = _followed(trainer, assignments, stopping, listener)
            if failure is None:
                return
            # Lost workers are Ray Train's to replace; that it gave up, for a minute, means that they no
            # longer fit: a smaller or later start may.
            failures = failures + 1 if ray.get(assignments.moved.remote()) == moved else 1
            if failures > retries:
                raise ClusterError(
                    f"Ray Train gave up the final job {failures} times and no user got on in between "
                    f"({type(failure).__name__})",
                    expected="a cluster that keeps its nodes for a while",
                    remedy="look into Ray Train's logs in Ray's session folder; then resume",
                )
            spec.look()
            if open_users := _open(spec):
                worker = slots(open_users)
    finally:
        ray.kill(assignments)
        shutil.rmtree(spec.root / _SCRATCH, ignore_errors=True)


def _open(spec: FinalSpec) -> int:
    """How many users can be worked on side by side: those without a memory, or without scores."""
    untrained = sum(not spec.has_memory(alias) for alias in spec.placements)
    untested = sum(not spec.score_file(alias).exists() for alias in spec.placements)
    return max(untrained, untested)


def _followed(
    trainer: TorchTrainer, assignments: Any, stopping: Callable[[], bool], listener: Listener
) -> Exception | None:
    """Run it in a thread, and tell what happens; the error that Ray Train ended with, if any."""
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
        events, fatal = ray.get(assignments.news.remote())
        for event in events:
            listener(event)
        if fatal is not None:
            raise from_plain(fatal)
        if over:
            return ended[0] if ended and not told else None
        if stopping() and not told:
            told = True
            ray.get(assignments.stop.remote())
        thread.join(_POLL_SECONDS)


def _trainer(spec: FinalSpec, worker: Slots, assignments: Any) -> TorchTrainer:
    settings = spec.study.ray
    # Read by Ray Train in this process; the seconds are passed on to its controller.
    # State tracking gives the dashboard its list of Train runs: an actor more, where there is a dashboard.
    if settings.dashboard or settings.address or "RAY_ADDRESS" in os.environ:
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", f"{settings.group_timeout:g}")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from milp_ray.tune.final_worker import EndRanks, FinalLoop, GroupsConfig

    return TorchTrainer(
        FinalLoop(assignments, worker.cpus),
        torch_config=GroupsConfig(size=worker.workers, assignments=assignments),
        scaling_config=ScalingConfig(
            num_workers=worker.count * worker.workers,
            use_gpu=worker.gpus > 0,
            resources_per_worker=dict(worker.resources),
        ),
        run_config=RunConfig(
            name=f"{spec.study.name}-final",
            storage_path=str(spec.root / _SCRATCH),
            # How often a user is tried again, and when to give up, is the assignments' to say: with many
            # users, a worker is lost now and then.
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=0),
            callbacks=[EndRanks(assignments)],
        ),
    )
