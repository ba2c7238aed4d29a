"""The final stage: every user's chosen configuration trained on all it may see, then tested once.

A pool of workers, each with a resident base. First every memory is trained and saved, then every user is
tested with no memory, the own memory and another user's. Both are resumable user by user. One worker per
user at a time: sharding one user's training over several GPUs is not covered here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from milp_ray.config.models import Study
from milp_ray.data.records import UserSplit
from milp_ray.errors import MilpRayError, TrialFailed
from milp_ray.ids import child
from milp_ray.memory.space import Placement
from milp_ray.storage import write_json


@dataclass(frozen=True)
class FinalSpec:
    """What the final stage works on. ``placements`` are the chosen ones, by alias."""

    study: Study
    users: Mapping[str, ray.ObjectRef[UserSplit]]
    placements: Mapping[str, Placement]
    memories: Path
    scores: Path

    def memory(self, alias: str) -> Path:
        """Where a user's memory is, or will be."""
        return child(self.memories, alias)

    def score_file(self, alias: str) -> Path:
        """Where a user's test scores are, or will be."""
        return child(self.scores, f"{alias}.json")

    def other(self, alias: str, trained: Sequence[str]) -> str | None:
        """Whose memory is held against the user's own: the next trained user's, by alias."""
        ring = sorted(trained)
        if len(ring) < 2 or alias not in ring:
            return None
        return ring[(ring.index(alias) + 1) % len(ring)]


class FinalWorker:
    """A resident base that trains and tests one user after another (a Ray actor)."""

    def __init__(self, spec: FinalSpec, threads: int) -> None:
        import torch

        from milp_ray.training.base import load_base

        if threads >= 1:
            torch.set_num_threads(threads)
        self._spec = spec
        self._base = load_base(spec.study.model)

    def train(self, alias: str) -> str:
        """Train and save a user's memory. Returns the reason of a failure, or an empty string."""
        from milp_ray.training.trial import Trial

        study = self._spec.study
        placement = self._spec.placements[alias]
        user = ray.get(self._spec.users[alias])
        try:
            with Trial(self._base, user, placement, study, phase="final", seed=study.seed) as trial:
                for _ in trial.steps():
                    pass
                trial.save(self._spec.memory(alias))
        except TrialFailed as failure:
            return failure.reason
        return ""

    def test(self, alias: str, other: str | None) -> str:
        """Test a user once with no memory, the own memory and another user's; write the scores."""
        from milp_ray.data.prompts import Prompts
        from milp_ray.evaluation.compare import evaluate
        from milp_ray.training.base import loaded

        study = self._spec.study
        user = ray.get(self._spec.users[alias])
        prompts = Prompts(study.prompts)

        def scores() -> dict[str, float]:
            found = evaluate(self._base, user, prompts, study, user.test)
            return {name: getattr(found, name) for name in ("loss", "rouge_1", "rouge_l", "persona_f1")}

        table: dict[str, dict[str, float]] = {"base": scores()}
        for model, owner in (("own", alias), ("other", other)):
            if owner is not None:
                with loaded(self._base, self._spec.memory(owner)):
                    table[model] = scores()
        write_json(self._spec.score_file(alias), {"samples": len(user.test), "other": other, "models": table})
        return ""


def run_final(
    spec: FinalSpec,
    per_worker: Mapping[str, float],
    workers: int,
    stopping: Callable[[], bool],
    listener: Callable[[str, str, str], None],
) -> None:
    """Train what is not trained, then test what is not tested.

    Args:
        spec: whose and which placements.
        per_worker: ``{"cpu": …, "gpu": …}``.
        workers: how many at once.
        stopping: polled; on True the workers are ended, and finished users stay finished.
        listener: called with (step, alias, reason); step is "train" or "test", reason empty on success.

    Raises:
        ClusterError: workers keep dying.
        StorageError: a memory or score could not be written.
    """
    untrained = [
        alias for alias in spec.placements if not (spec.memory(alias) / "adapter_config.json").exists()
    ]
    untested = [alias for alias in spec.placements if not spec.score_file(alias).exists()]
    if not untrained and not untested:
        return
    pool = _Pool(spec, per_worker, min(workers, max(len(untrained), len(untested))))
    try:
        for alias, reason in pool.map([("train", (alias,)) for alias in untrained], stopping):
            listener("train", alias, reason)
        trained = [a for a in spec.placements if (spec.memory(a) / "adapter_config.json").exists()]
        jobs = [("test", (alias, spec.other(alias, trained))) for alias in untested if alias in trained]
        for alias, reason in pool.map(jobs, stopping):
            listener("test", alias, reason)
    finally:
        pool.close()


Job = tuple[str, tuple[str | None, ...]]


class _Pool:
    """Actors that take jobs as they become free; a dead actor is replaced and its job tried again."""

    def __init__(self, spec: FinalSpec, per_worker: Mapping[str, float], size: int) -> None:
        self._retries = spec.study.ray.max_failures
        threads = int(per_worker["cpu"])
        actor = ray.remote(num_cpus=per_worker["cpu"], num_gpus=per_worker["gpu"])(FinalWorker)
        spec_ref = ray.put(spec)
        self._make: Callable[[], Any] = lambda: actor.remote(spec_ref, threads)
        self._idle = [self._make() for _ in range(size)]
        self._busy: dict[Any, tuple[Any, Job, int]] = {}

    def map(self, jobs: Sequence[Job], stopping: Callable[[], bool]) -> Iterator[tuple[str, str]]:
        """Yield (alias, reason) as jobs end. Ends early, with jobs undone, when ``stopping()``."""
        waiting = [(job, 0) for job in reversed(jobs)]
        while (waiting or self._busy) and not stopping():
            while waiting and self._idle:
                job, tries = waiting.pop()
                worker = self._idle.pop()
                ref = getattr(worker, job[0]).remote(*job[1])
                self._busy[ref] = (worker, job, tries)
            done, _ = ray.wait(list(self._busy), num_returns=1, timeout=0.2)
            for ref in done:
                worker, job, tries = self._busy.pop(ref)
                try:
                    reason = ray.get(ref)
                except ray.exceptions.RayActorError:
                    worker = self._make()
                    if tries < self._retries:
                        self._idle.append(worker)
                        waiting.append((job, tries + 1))
                        continue
                    reason = "the worker died more often than ray.max_failures allows"
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, MilpRayError):
                        raise error.cause from None
                    reason = f"{type(error.cause).__name__} in the worker"
                self._idle.append(worker)
                yield str(job[1][0]), reason

    def close(self) -> None:
        """End the actors, whatever they are doing."""
        for worker in [*self._idle, *(worker for worker, _, _ in self._busy.values())]:
            ray.kill(worker)
        self._idle, self._busy = [], {}
