"""Where worker processes are, and how they are killed when they no longer answer.

Ray's own way to end an actor waits some seconds for its process (Ray 2.60: five). So a process that
was stopped or hangs in a kernel keeps its memory and its GPU for that long. These functions send
SIGKILL by process id, on whatever node the process is.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_SECONDS = 5.0  # a node may be gone altogether


@dataclass(frozen=True)
class WorkerProcess:
    """A process by its node and process id.

    Attributes:
        node: Ray's id of the node.
        pid: process id on that node.
        host: the node's address, for people.
    """

    node: str
    pid: int
    host: str = ""


def this_process() -> WorkerProcess:
    """The calling process."""
    return WorkerProcess(ray.get_runtime_context().get_node_id(), os.getpid(), ray.util.get_node_ip_address())


def host_rendezvous(one_machine: bool) -> str:
    """Open the rendezvous of a group's ranks; its address.

    The calling process is rank 0. ``one_machine``: whether all ranks are on this node.
    """
    from milp_ray.model.parallel.rendezvous import open_rendezvous

    return open_rendezvous(ray.util.get_node_ip_address(), one_machine=one_machine)


def on_one_node(processes: Iterable[WorkerProcess]) -> bool:
    """Whether processes are all on the same node."""
    return len({process.node for process in processes}) == 1


def end(processes: Iterable[WorkerProcess]) -> None:
    """Kill processes, on all their nodes at once; those that are gone are no error."""
    by_node: dict[str, list[int]] = {}
    for process in processes:
        by_node.setdefault(process.node, []).append(process.pid)
    _end(by_node.pop(ray.get_runtime_context().get_node_id(), []))
    task = ray.remote(num_cpus=0, max_retries=0)(_end)
    asked = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(pids)
        for node, pids in by_node.items()
    ]
    if asked:
        ray.wait(asked, num_returns=len(asked), timeout=_SECONDS)


def _end(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def node_name() -> str:
    """A short name of this process's node; empty outside Ray.

    It is the first digits of the node's id in Ray's dashboard, and tells neither host nor address.
    """
    return str(ray.get_runtime_context().get_node_id())[:8] if ray.is_initialized() else ""


def worker_name() -> str:
    """A short name of this actor, made as :func:`node_name`; empty outside one."""
    return str(ray.get_runtime_context().get_actor_id() or "")[:8] if ray.is_initialized() else ""
