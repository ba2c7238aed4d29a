"""What a worker takes, and how many trials the cluster runs at once.

Nodes come and go: this is asked afresh at every stage. Where there is no room for a single trial,
an autoscaler is asked for it; where several are to start together (the final job), for all of them.
Which trial goes where is Ray's own business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import ray
from ray.autoscaler.sdk import request_resources

from milp_ray.config.models import Study
from milp_ray.errors import ClusterError

_POLL_SECONDS = 0.5
_ASK_SECONDS = 15.0
_AMOUNTS = ("CPU", "GPU", "memory")
# Ray marks a node by one unit of a resource named after its GPU; who must be there takes a hair of
# it.
_KIND, _KIND_AMOUNT = "accelerator_type:", 0.001


@dataclass(frozen=True)
class TrialResources:
    """What one worker takes, how many of them a trial has, and how many trials run at once right
    now.

    Attributes:
        resources: what one worker asks of Ray, by Ray's names, ``memory`` in bytes.
        count: trials at once.
        workers: of a trial.
    """

    resources: Mapping[str, float]
    count: int
    workers: int = 1

    @property
    def cpus(self) -> float:
        """Of one worker."""
        return self.resources.get("CPU", 0.0)

    @property
    def gpus(self) -> float:
        """Of one worker."""
        return self.resources.get("GPU", 0.0)


def trial_resources(
    study: Study,
    stopping: Callable[[], bool] = lambda: False,
    notify: Callable[[str], object] = lambda text: None,
    together: int | None = None,
) -> TrialResources:
    """Resources of a worker, ``auto`` resolved, and how many run at once, bounded by
    ``ray.max_concurrent``.

    Counted node by node, since a worker cannot be spread over two (those of a trial can), and
    afresh at every stage, as nodes come and go. Where the cluster has no room for a trial yet, its
    autoscaler is asked for it and given ``ray.wait_for_nodes`` seconds. Trials beyond what is there
    wait for room one by one, and it is them that an autoscaler adds nodes for; trials that start
    ``together`` cannot wait, so nodes for all of them are asked for and given that time, and then
    as many start as there is room for.

    Args:
        study: that asks.
        stopping: looked at twice a second while waiting.
        notify: is told what is waited for.
        together: how many trials are to start at once, or as many of them as can; None: each by
            itself.

    Raises:
        ClusterError: the cluster as it stands (after that time) could not run a single trial.
        KeyboardInterrupt: ``stopping()`` while waiting.
    """
    settings = study.ray
    deadline, asked = time.monotonic() + settings.wait_for_nodes, None
    try:
        while True:
            over = time.monotonic() >= deadline
            try:
                found = _room(study)
                most = settings.max_concurrent or found.count
                if together is None:
                    return replace(found, count=most if settings.wait_for_nodes else min(found.count, most))
                most = min(together, most)
                if over or found.count >= most:
                    return replace(found, count=min(found.count, most))
                fact = f"there is room for {found.count} of {most} that are to start together"
            except ClusterError as error:
                if over:
                    raise
                fact = error.problems[0].fact
            if asked is None:
                notify(f"waiting up to {settings.wait_for_nodes:.0f} s for nodes: {fact}")
            if stopping():
                raise KeyboardInterrupt
            # The cluster has one such request, and others (Ray Train's coordinator) overwrite it.
            if asked is None or time.monotonic() - asked >= _ASK_SECONDS:
                _ask_for_nodes(study, together)
                asked = time.monotonic()
            time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
    finally:
        if asked is not None:  # else what was asked for would be kept for ever, used or not
            request_resources(bundles=[])


def _room(study: Study) -> TrialResources:
    """What a worker takes, and how many trials there is room for right now.

    Raises:
        ClusterError: for none.
    """
    settings = study.ray
    nodes = _nodes()
    wanted = _wanted(study, nodes)
    held = [min(_times(node.get(k, 0), k, v) for k, v in wanted.items()) for node in nodes]
    if sum(held) < 1:
        by_name = study.model.device == "cuda" and "GPU" in wanted
        raise _no_gpu() if by_name and not _have_gpus(nodes) else _no_room(wanted, nodes)
    workers, count = settings.workers_per_trial, int(sum(held))
    if count < workers:
        raise ClusterError(
            f"a trial asks for {workers} workers of {amounts(wanted)} each, and the cluster holds {count}",
            expected=f"room for {workers}",
            remedy="lower ray.workers_per_trial or what a worker takes, add a node, "
            "or give an autoscaler time: ray.wait_for_nodes=900",
        )
    return TrialResources(wanted, count // workers, workers)


def _times(there: float, name: str, amount: float) -> float:
    """How often an amount of a resource can be given out of what a node has."""
    # Adding a hair keeps 0.3 // 0.1 at 3.
    if name == "GPU" and amount < 1:  # a part of a GPU is of one GPU: two of 0.4 on each
        return there // 1 * ((1 + 1e-9) // amount)
    return (there + 1e-9) // amount


def _no_gpu() -> ClusterError:
    """A GPU is asked for by name: what would quietly work on CPUs instead might take months."""
    return ClusterError(
        "it is cuda, and no node has a GPU",
        where="model.device",
        expected="a node with a GPU that Ray knows (ray status)",
        remedy="add one, give an autoscaler time: ray.wait_for_nodes=900, or set model.device to auto or cpu",
    )


def _no_room(wanted: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> ClusterError:
    """No node holds what a worker asks for; said with the largest one of those that come
    closest."""
    named = [name for name in wanted if name not in _AMOUNTS]
    largest: Mapping[str, float] = max(
        nodes, key=lambda n: (*(n.get(k, 0) for k in named), n.get("GPU", 0), n.get("CPU", 0)), default={}
    )
    there = {name: largest.get(name, 0.0) for name in ("CPU", "GPU", *wanted)}
    kinds = sorted({name.removeprefix(_KIND) for node in nodes for name in node if name.startswith(_KIND)})
    of_kinds = f"; GPUs there: {', '.join(kinds) or 'none that Ray knows'}" if _kind(wanted) else ""
    lower = ["ray.cpus_per_worker", "ray.gpus_per_worker"]
    lower += ["ray.memory_per_worker"] if "memory" in wanted else []
    lower += ["ray.accelerator_type"] if _kind(wanted) else []
    lower += ["ray.custom_resources"] if any(not name.startswith(_KIND) for name in named) else []
    return ClusterError(
        f"a worker asks for {amounts(wanted)}, and no node has that",
        expected=f"at most {amounts(there)} per worker{of_kinds}",
        remedy=f"change {', '.join(lower[:-1])} or {lower[-1]}, add a node, "
        "or give an autoscaler time: ray.wait_for_nodes=900",
    )


def _nodes() -> list[dict[str, float]]:
    """What the nodes that live have in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _wanted(study: Study, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a worker asks of Ray, by Ray's names, ``memory`` in bytes; a simulated one asks for CPUs
    alone."""
    settings = study.ray
    wanted = {"CPU": settings.cpus_per_worker}
    if study.simulation is not None:
        return wanted
    gpus = settings.gpus_per_worker
    if gpus == "auto":
        by_name = study.model.device == "cuda" or settings.accelerator_type
        gpus = 1.0 if study.model.device != "cpu" and (by_name or _have_gpus(nodes)) else 0.0
    wanted |= {"GPU": gpus, "memory": (settings.memory_per_worker or 0.0) * 2**30}
    if settings.accelerator_type:
        wanted[f"{_KIND}{settings.accelerator_type}"] = _KIND_AMOUNT
    return {name: amount for name, amount in (wanted | settings.custom_resources).items() if amount}


def _have_gpus(nodes: Sequence[Mapping[str, float]]) -> bool:
    return any(node.get("GPU", 0) >= 1 for node in nodes)


def _ask_for_nodes(study: Study, together: int | None) -> None:
    """Have the autoscaler, if there is one, make room for the trials that may run at once, or
    ``together``.

    With ``auto`` and no GPU yet, CPUs are asked for: an autoscaler that is to bring GPUs needs
    ``ray.gpus_per_worker``, or ``model.device`` cuda.
    """
    most = study.ray.max_concurrent or 1
    trials = most if together is None else min(together, most)
    request_resources(bundles=[_wanted(study, _nodes())] * (study.ray.workers_per_trial * trials))


def amounts(resources: Mapping[str, float]) -> str:
    """As people write it: CPUs and GPUs always, others where they are asked for."""
    kind = f" ({_kind(resources)})" if any(resources.get(n) for n in resources if n.startswith(_KIND)) else ""
    parts = [f"{resources.get('CPU', 0):g} CPUs", f"{resources.get('GPU', 0):g} GPUs{kind}"]
    if memory := resources.get("memory"):
        parts.append(f"{memory / 2**30:.3g} GiB of memory")
    others = (name for name in resources if name not in _AMOUNTS and not name.startswith(_KIND))
    parts += [f"{resources[name]:g} {name}" for name in others]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def held_by_others(worker: TrialResources) -> str:
    """What others hold of the resources that a worker takes, while we hold ``worker.count`` groups'
    room."""
    total, free = ray.cluster_resources(), ray.available_resources()
    ours = worker.count * worker.workers
    names = [name for name in worker.resources if not name.startswith(_KIND)]
    held = {n: max(0.0, total.get(n, 0.0) - free.get(n, 0.0) - ours * worker.resources[n]) for n in names}
    return f"others hold {amounts(held)} of {amounts({name: total.get(name, 0.0) for name in names})}"


def _kind(resources: Mapping[str, float]) -> str:
    """The kind of GPU among them, if any."""
    return next((name.removeprefix(_KIND) for name in resources if name.startswith(_KIND)), "")


def on_device(study: Study, worker: TrialResources) -> Study:
    """The study as its workers are to read it: on their GPU, or without one of their own off
    everybody's.

    Ray does not hide GPUs from a worker that asked for none, and one that cannot use its GPU must
    not work on the CPU for hours instead.
    """
    device = "cuda" if worker.gpus else "cpu"
    return study.model_copy(update={"model": study.model.model_copy(update={"device": device})})
