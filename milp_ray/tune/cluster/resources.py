"""What a worker takes, and how many trials the cluster runs at once.

Nodes come and go, so every stage asks anew. Where the cluster has no room for a single trial, an
autoscaler is asked for it; where several start together (the final job), for all of them. Ray
decides which trial runs on which node.
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
# Ray marks a node by one unit of a resource named after its GPU. A worker that must run there takes
# a hair of it.
_KIND, _KIND_AMOUNT = "accelerator_type:", 0.001


@dataclass(frozen=True)
class TrialResources:
    """What trials take of a cluster.

    Attributes:
        per_worker: what one worker asks of Ray, by Ray's names, ``memory`` in bytes.
        concurrent: how many trials, or groups of the final job, run at once right now.
        workers_per_trial: how many workers run one trial.
    """

    per_worker: Mapping[str, float]
    concurrent: int
    workers_per_trial: int = 1

    @property
    def cpus_per_worker(self) -> float:
        """CPUs that one worker takes."""
        return self.per_worker.get("CPU", 0.0)

    @property
    def gpus_per_worker(self) -> float:
        """GPUs that one worker takes."""
        return self.per_worker.get("GPU", 0.0)


def trial_resources(
    study: Study,
    stop_requested: Callable[[], bool] = lambda: False,
    notify: Callable[[str], object] = lambda text: None,
    together: int | None = None,
) -> TrialResources:
    """Resources of a worker, ``auto`` resolved, and how many trials run at once.

    Room is counted node by node, since a node holds a worker whole; the workers of a trial may be
    on several nodes. ``ray.max_concurrent`` is the upper bound. Where the cluster has no room for a
    trial yet, its autoscaler is asked for it and given ``ray.wait_for_nodes`` seconds. Further
    trials wait for room one by one, and the autoscaler adds nodes for them. Trials that start
    ``together`` cannot wait. So nodes for all of them are asked for and given that time, and then
    as many start as there is room for.

    Args:
        study: the study whose trials these are.
        stop_requested: looked at twice a second while waiting.
        notify: is told what is waited for.
        together: how many trials start at once, or as many of them as can; None: each by itself.

    Raises:
        ClusterError: the cluster as it stands (after that time) could not run a single trial.
        KeyboardInterrupt: ``stop_requested()`` while waiting.
    """
    settings = study.ray
    deadline, asked = time.monotonic() + settings.wait_for_nodes, None
    try:
        while True:
            over = time.monotonic() >= deadline
            try:
                found = _capacity(study)
                most = settings.max_concurrent or found.concurrent
                fitting = min(found.concurrent, most)
                if together is None:
                    return replace(found, concurrent=most if settings.wait_for_nodes else fitting)
                most = min(together, most)
                if over or found.concurrent >= most:
                    return replace(found, concurrent=min(found.concurrent, most))
                fact = f"there is room for {found.concurrent} of {most} that are to start together"
            except ClusterError as error:
                if over:
                    raise
                fact = error.problems[0].fact
            if asked is None:
                notify(f"waiting up to {settings.wait_for_nodes:.0f} s for nodes: {fact}")
            if stop_requested():
                raise KeyboardInterrupt
            # The cluster has one such request, and others (Ray Train's coordinator) overwrite it.
            if asked is None or time.monotonic() - asked >= _ASK_SECONDS:
                _request_nodes(study, together)
                asked = time.monotonic()
            time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
    finally:
        if asked is not None:  # otherwise the autoscaler would keep these nodes for ever, used or not
            request_resources(bundles=[])


def _capacity(study: Study) -> TrialResources:
    """What a worker takes, and how many trials the cluster holds right now.

    Raises:
        ClusterError: it holds none.
    """
    settings = study.ray
    nodes = _nodes()
    wanted = _worker_resources(study, nodes)
    by_node = [min(_fitting(node.get(k, 0), k, v) for k, v in wanted.items()) for node in nodes]
    if sum(by_node) < 1:
        by_name = study.model.device == "cuda" and "GPU" in wanted
        raise _no_gpu() if by_name and not _have_gpus(nodes) else _no_room(wanted, nodes)
    per_trial, workers = settings.workers_per_trial, int(sum(by_node))
    if workers < per_trial:
        raise ClusterError(
            f"a trial asks for {per_trial} workers of {amounts(wanted)} each, "
            f"and the cluster holds {workers}",
            expected=f"room for {per_trial}",
            remedy="lower ray.workers_per_trial or what a worker takes, add a node, "
            "or give an autoscaler time: ray.wait_for_nodes=900",
        )
    return TrialResources(wanted, workers // per_trial, per_trial)


def _fitting(total: float, name: str, amount: float) -> float:
    """How many workers that take ``amount`` of a resource fit into a node's ``total`` of it."""
    # Adding a hair keeps 0.3 // 0.1 at 3.
    if name == "GPU" and amount < 1:  # a worker's part of a GPU is on one GPU: each holds two of 0.4
        return total // 1 * ((1 + 1e-9) // amount)
    return (total + 1e-9) // amount


def _no_gpu() -> ClusterError:
    """The error of a study that names cuda: on CPUs it might quietly take months."""
    return ClusterError(
        "it is cuda, and no node has a GPU",
        where="model.device",
        expected="a node with a GPU that Ray knows (ray status)",
        remedy="add one, give an autoscaler time: ray.wait_for_nodes=900, or set model.device to auto or cpu",
    )


def _no_room(wanted: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> ClusterError:
    """The error of a cluster without a node for a worker; it names what the closest node has."""
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
    """The total resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _worker_resources(study: Study, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a worker asks of Ray, by Ray's names, ``memory`` in bytes.

    A simulated worker asks for CPUs alone.
    """
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


def _request_nodes(study: Study, together: int | None) -> None:
    """Ask the autoscaler, if any, for room for the trials that may run at once, or ``together``.

    With ``auto`` and no GPU yet, CPUs are asked for: an autoscaler that is to bring GPUs needs
    ``ray.gpus_per_worker``, or ``model.device`` cuda.
    """
    most = study.ray.max_concurrent or 1
    trials = most if together is None else min(together, most)
    bundle = _worker_resources(study, _nodes())
    request_resources(bundles=[bundle] * (study.ray.workers_per_trial * trials))


def amounts(resources: Mapping[str, float]) -> str:
    """Resources as people write them: CPUs and GPUs always, others where they are asked for."""
    kind = f" ({_kind(resources)})" if any(resources.get(n) for n in resources if n.startswith(_KIND)) else ""
    parts = [f"{resources.get('CPU', 0):g} CPUs", f"{resources.get('GPU', 0):g} GPUs{kind}"]
    if memory := resources.get("memory"):
        parts.append(f"{memory / 2**30:.3g} GiB of memory")
    others = (name for name in resources if name not in _AMOUNTS and not name.startswith(_KIND))
    parts += [f"{resources[name]:g} {name}" for name in others]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def used_by_others(ours: TrialResources) -> str:
    """What others use of the resources that our workers take, in words for people.

    Args:
        ours: what we have reserved: ``concurrent`` groups of workers.
    """
    total, free = ray.cluster_resources(), ray.available_resources()
    workers = ours.concurrent * ours.workers_per_trial
    names = [name for name in ours.per_worker if not name.startswith(_KIND)]
    used = {n: max(0.0, total.get(n, 0.0) - free.get(n, 0.0) - workers * ours.per_worker[n]) for n in names}
    return f"others hold {amounts(used)} of {amounts({name: total.get(name, 0.0) for name in names})}"


def _kind(resources: Mapping[str, float]) -> str:
    """The kind of GPU among resources, if any."""
    return next((name.removeprefix(_KIND) for name in resources if name.startswith(_KIND)), "")


def on_device(study: Study, resources: TrialResources) -> Study:
    """The study as its workers read it: on cuda if they take GPUs, else on cpu.

    Ray does not hide GPUs from a worker that asked for none. And a worker that cannot use its GPU
    must not work on the CPU for hours instead.
    """
    device = "cuda" if resources.gpus_per_worker else "cpu"
    return study.model_copy(update={"model": study.model.model_copy(update={"device": device})})
