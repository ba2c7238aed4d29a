"""The final stage: every user's chosen configuration trained on all it may see, then tested once.

A pool of workers, each with a resident base. First every memory is trained and saved, then every user is
tested with no memory, the own memory and another user's. Both are resumable user by user. One worker per
user at a time: sharding one user's training over several GPUs is not covered here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from milp_ray.config.models import Study
from milp_ray.errors import ClusterError, MilpRayError, TrialFailed, from_plain, place_of
from milp_ray.ids import child
from milp_ray.memory.space import Placement
from milp_ray.storage import write_json
from milp_ray.tune.search_run import SharedUsers, Slots
from milp_ray.tune.slicing import cannot_start


@dataclass(frozen=True)
class FinalSpec:
    """What the final stage works on. ``placements`` are the chosen ones, by alias."""

    study: Study
    users: SharedUsers
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
        """Whose memory is held against the user's own: the next trained user's."""
        ring = list(trained)  # in the order of the data: the same pairs in every run of a study
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
        self._fatal: MilpRayError | None = None
        try:
            self._base = load_base(spec.study.model)
        except MilpRayError as error:
            self._fatal = error
        except Exception as error:
            self._fatal = cannot_start(error)

    def ready(self) -> dict[str, object] | None:
        """None, or the error that keeps this worker, and so any, from working."""
        return self._fatal.to_plain() if self._fatal else None

    def do(self, step: str, alias: str, other: str | None) -> str:
        """One job. Returns the reason of a failure, or an empty string.

        Raises:
            MilpRayError: the storage failed.
            RuntimeError: anything else, told without its message, which might quote a user's text.
        """
        try:
            if step == "train":
                self._train(alias)
            else:
                self._test(alias, other)
        except TrialFailed as failure:
            return failure.reason
        except MilpRayError:
            raise
        except Exception as error:
            raise RuntimeError(place_of(error)) from None
        return ""

    def _train(self, alias: str) -> None:
        from milp_ray.training.trial import Trial

        study = self._spec.study
        placement = self._spec.placements[alias]
        user = ray.get(self._spec.users[alias])
        with Trial(self._base, user, placement, study, phase="final", seed=study.seed) as trial:
            for _ in trial.steps():
                pass
            trial.save(self._spec.memory(alias))

    def _test(self, alias: str, other: str | None) -> None:
        """Once with no memory, the own memory and another user's; values that are not finite become null."""
        from milp_ray.data.prompts import Prompts
        from milp_ray.evaluation.compare import evaluate
        from milp_ray.training.base import loaded

        study = self._spec.study
        user = ray.get(self._spec.users[alias])
        prompts = Prompts(study.prompts)

        def scores() -> dict[str, float | None]:
            found = evaluate(self._base, user, prompts, study, user.test)
            values = {name: getattr(found, name) for name in ("loss", "rouge_1", "rouge_l", "persona_f1")}
            return {name: value if math.isfinite(value) else None for name, value in values.items()}

        table = {"base": scores()}
        for model, owner in (("own", alias), ("other", other)):
            if owner is not None:
                with loaded(self._base, self._spec.memory(owner)):
                    table[model] = scores()
        found = {
            "samples": len(user.test),
            "placement": self._spec.placements[alias].key,
            "other": other,
            "models": table,
        }
        write_json(self._spec.score_file(alias), found)


def run_final(
    spec: FinalSpec,
    worker: Slots,
    stopping: Callable[[], bool],
    listener: Callable[[str, str, str], None],
) -> None:
    """Train what is not trained, then test what is not tested.

    Args:
        spec: whose and which placements.
        worker: what one takes, and how many run at once.
        stopping: polled; on True the workers are ended, and finished users stay finished.
        listener: called with (step, alias, reason); step is "train" or "test", reason empty on success.

    Raises:
        ClusterError: workers keep dying.
        StorageError: a memory or score could not be written.
    """
    trained = {alias for alias in spec.placements if (spec.memory(alias) / "adapter_config.json").exists()}
    untested = [alias for alias in spec.placements if not spec.score_file(alias).exists()]
    untrained = [alias for alias in spec.placements if alias not in trained]
    if not untrained and not untested:
        return
    pool = _Pool(spec, worker, max(len(untrained), len(untested)))
    try:
        for alias, reason in pool.map([("train", alias, None) for alias in untrained], stopping):
            if not reason:
                trained.add(alias)
            listener("train", alias, reason)
        ring = [alias for alias in spec.placements if alias in trained]
        jobs = [("test", alias, spec.other(alias, ring)) for alias in untested if alias in trained]
        for alias, reason in pool.map(jobs, stopping):
            listener("test", alias, reason)
    finally:
        pool.close()


Job = tuple[str, str, str | None]


class _Pool:
    """Actors that take jobs once they are up; a broken actor is replaced and its job tried again.

    Actors for which the cluster has no room at the moment never come up and are given no job.
    """

    def __init__(self, spec: FinalSpec, worker: Slots, jobs: int) -> None:
        self._retries = spec.study.ray.max_failures
        actor = ray.remote(num_cpus=worker.cpus, num_gpus=worker.gpus)(FinalWorker)
        spec_ref = ray.put(spec)
        self._make: Callable[[], Any] = lambda: actor.remote(spec_ref, int(worker.cpus))
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Job, int]] = {}
        self._deaths = 0
        for _ in range(min(worker.count, jobs)):
            self._start()

    def map(self, jobs: Sequence[Job], stopping: Callable[[], bool]) -> Iterator[tuple[str, str]]:
        """Yield (alias, reason) as jobs end. Ends early, with jobs undone, when ``stopping()``.

        Raises:
            ClusterError: no worker can be set up.
            StorageError: a memory or score could not be written.
        """
        waiting = [(job, 0) for job in reversed(jobs)]
        while (waiting or self._busy) and not stopping():
            while waiting and self._idle:
                job, tries = waiting.pop()
                worker = self._idle.pop()
                self._busy[worker.do.remote(*job)] = (worker, job, tries)
            done, _ = ray.wait([*self._starting, *self._busy], num_returns=1, timeout=0.2)
            for ref in done:
                if ref in self._starting:
                    self._started(ref)
                    continue
                worker, job, tries = self._busy.pop(ref)
                try:
                    reason = ray.get(ref)
                    self._idle.append(worker)
                except ray.exceptions.RayError as error:
                    if isinstance(getattr(error, "cause", None), MilpRayError):
                        raise error.cause from None
                    self._replace(worker)
                    if tries < self._retries:
                        waiting.append((job, tries + 1))
                        continue
                    reason = f"the worker failed {tries + 1} times"
                yield job[1], reason

    def close(self) -> None:
        """End the actors, whatever they are doing."""
        for worker in [
            *self._starting.values(),
            *self._idle,
            *(worker for worker, _, _ in self._busy.values()),
        ]:
            ray.kill(worker)
        self._starting, self._idle, self._busy = {}, [], {}

    def _start(self) -> None:
        worker = self._make()
        self._starting[worker.ready.remote()] = worker

    def _started(self, ref: Any) -> None:
        worker = self._starting.pop(ref)
        try:
            fatal = ray.get(ref)
        except ray.exceptions.RayError:
            self._deaths += 1
            if self._deaths > self._retries:
                raise ClusterError(
                    f"{self._deaths} workers of the final stage died while they started",
                    remedy="look into the workers' logs in Ray's session folder; then resume",
                ) from None
            self._replace(worker)
            return
        if fatal is not None:
            raise from_plain(fatal)
        self._idle.append(worker)

    def _replace(self, worker: Any) -> None:
        """The old one is ended first: it may live, and hold a GPU that the new one needs."""
        ray.kill(worker)
        self._start()
