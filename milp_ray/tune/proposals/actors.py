"""Proposers that are resident Ray actors: model fits do not compete with the driver for its lock.

The actors ask Ray for no CPU: where trials use all CPUs, Ray would never place an actor that asks
for one. ``ray.proposers`` says how many there are. Each keeps its imports and compiled programs for
the length of the run. An actor that dies is replaced, and its plan tried again. Where that does not
help, the driver computes the plan, so no user is ever lost. What a plan is:
:mod:`milp_ray.search.core.plan`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any

import ray
from ray._private.utils import get_num_cpus  # heeds a container's limit

from milp_ray.config.models import Study
from milp_ray.core_dumps import no_core_dumps
from milp_ray.errors import MilpRayError
from milp_ray.search.propose import propose
from milp_ray.tune.proposals.threads import Proposer, Threads, WarmUp

if TYPE_CHECKING:
    from milp_ray.search import Candidates, Plan

_FEW_CPUS = 8  # up to here an actor's start costs the trials more than its fits gain
_CPUS_PER_PROPOSER = 8
_TRIES = 3  # of a plan, on as many actors, before the driver computes it
_PRIORITY = -5  # nice value: a late proposal holds up a worker, a slow trial only itself


class _Actor:
    """One process that proposes."""

    def __init__(self, warm_up: WarmUp) -> None:
        with contextlib.suppress(OSError):  # only root, and who was given the right, may
            os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
        no_core_dumps()  # which would hold Ray's object store, and with it texts
        self._warm_up = warm_up

    def warm_up_first(self) -> None:
        """Import, and load or compile what the first proposals need."""
        self._warm_up.first()

    def warm_up_rest(self) -> None:
        """Compile what later proposals need, while the first ones are computed."""
        self._warm_up.rest()

    def propose(self, plan: Plan) -> Candidates:
        """Compute a plan's candidates; see :func:`milp_ray.search.propose.propose`."""
        return propose(plan)


class Actors(Threads):
    """Ray actors that propose, each with a thread of the driver that waits for it.

    Args:
        count: number of actors.
        warm_up: what each actor does before its first plan.
    """

    def __init__(self, count: int, warm_up: WarmUp) -> None:
        # Two threads, so that later programs are compiled beside the first proposals.
        self._make = ray.remote(num_cpus=0, max_concurrency=2, scheduling_strategy="SPREAD")(_Actor)
        self._arguments = ray.put(warm_up)
        self._actors: dict[int, Any] = {}
        self._actors_lock = threading.Lock()
        super().__init__(count, warm_up)

    def close(self) -> None:
        """Kill the actors, whatever they are doing."""
        super().close()
        with self._actors_lock:
            for actor in self._actors.values():
                ray.kill(actor)
            self._actors.clear()

    def _begin(self, slot: int) -> None:
        for _ in range(_TRIES):
            with contextlib.suppress(ray.exceptions.RayActorError):
                ray.get(self._actor(slot).warm_up_first.remote())
                return
            self._lose(slot)

    def _begin_rest(self) -> None:
        ray.get([self._actor(slot).warm_up_rest.remote() for slot in range(len(self._threads))])

    def _compute(self, slot: int, plan: Plan) -> Candidates:
        for _ in range(_TRIES):
            try:
                result: Candidates = ray.get(self._actor(slot).propose.remote(plan))
                return result
            except ray.exceptions.RayTaskError as error:
                cause = getattr(error, "cause", None)
                raise (cause if isinstance(cause, MilpRayError) else error) from None
            except ray.exceptions.RayError:
                self._lose(slot)
                if self._closed:
                    raise
                self._quietly(lambda: self._begin(slot))
        return propose(plan)

    def _actor(self, slot: int) -> Any:
        with self._actors_lock:
            if self._closed:
                raise RuntimeError("the proposers were closed")
            if slot not in self._actors:
                self._actors[slot] = self._make.remote(self._arguments)
            return self._actors[slot]

    def _lose(self, slot: int) -> None:
        """Forget an actor that failed, and kill it where it lives all the same."""
        with self._actors_lock:
            actor = self._actors.pop(slot, None)
        if actor is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)


def make_proposer(study: Study, warm_up: WarmUp) -> Proposer:
    """The proposer that ``ray.proposers`` asks for: actors, or a thread of this process."""
    count = proposers_of(study)
    return Actors(count, warm_up) if count else Threads(1, warm_up)


def proposers_of(study: Study) -> int:
    """How many actors propose; 0: a thread of the driver. ``auto`` counts the CPUs."""
    settings = study.ray
    if settings.proposers != "auto":
        return int(settings.proposers)
    mine = ray.get_runtime_context().get_node_id()
    offered = {node["NodeID"]: node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]}
    workers = (settings.max_concurrent or 0) * settings.workers_per_trial
    idle = get_num_cpus(override_docker_cpu_warning=True) - offered.get(mine, 0.0) - 1
    return actors_for(sum(offered.values()), workers * settings.cpus_per_worker, idle)


def actors_for(present: float, asked: float, idle: float) -> int:
    """How many actors the trials on so many CPUs need, and the present nodes can carry.

    On an autoscaled cluster only the head is present at first, and actors stay where they start.

    Args:
        present: CPUs that nodes offer to trials; one actor to eight CPUs hardly slows trials.
        asked: CPUs of all trials that the study wants at once, also on nodes that are yet to come.
        idle: CPUs of the driver's machine that no trial gets, less one for the driver.
    """
    cpus = max(present, asked)
    if cpus <= _FEW_CPUS:
        return 0
    return int(min(cpus // _CPUS_PER_PROPOSER, present // _CPUS_PER_PROPOSER + max(0.0, idle)))
