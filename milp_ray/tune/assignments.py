"""Who trains and tests which user in the final job, and what has come of it.

One actor stands between the driver and the groups of workers. Groups ask for the next job and tell how it
ended; a group that comes back after a failure finds its job handed out again. No model and no text is here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from milp_ray.config.models import Study
from milp_ray.errors import ClusterError, MilpRayError
from milp_ray.ids import child
from milp_ray.memory.space import Placement
from milp_ray.storage import look
from milp_ray.tune.processes import Place
from milp_ray.tune.shared import SharedUsers

Step = Literal["train", "test"]


@dataclass(frozen=True)
class FinalSpec:
    """What the final job works on. ``placements`` are the chosen ones, by alias."""

    study: Study
    users: SharedUsers
    placements: Mapping[str, Placement]
    root: Path

    def memory(self, alias: str) -> Path:
        """Where a user's memory is, or will be."""
        return child(self.root, "memories", alias)

    def score_file(self, alias: str) -> Path:
        """Where a user's test scores are, or will be."""
        return child(self.root, "scores", f"{alias}.json")

    def checkpoints(self, alias: str) -> Path:
        """Where the states of a user's training are until it is over."""
        return child(self.root, "checkpoints", alias)

    def look(self) -> None:
        """See what other processes have written (matters for a run at a URL)."""
        look(self.root / "memories", "*/adapter_config.json")
        look(self.root / "scores", "*.json")

    def has_memory(self, alias: str) -> bool:
        """Whether a user's memory is there."""
        return (self.memory(alias) / "adapter_config.json").exists()


@dataclass(frozen=True)
class Job:
    """One user to be trained, or tested beside the memory of ``other``."""

    step: Step
    alias: str
    other: str | None = None


@dataclass(frozen=True)
class Event:
    """How a job ended. ``reason``: why it failed, empty on success. ``notes``: what else there is to tell."""

    step: Step
    alias: str
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class _Group:
    job: Job | None = None
    places: dict[int, Place] = field(default_factory=dict)
    starts: int = 0  # since it last had a job


class Assignments:
    """Hands out jobs: first all trainings, then, as they need other users' memories, all tests.

    Args:
        spec: of the final job.
        retries: how often a job is handed out again after its workers were lost.
    """

    def __init__(self, spec: FinalSpec, retries: int) -> None:
        self._spec, self._retries = spec, retries
        spec.look()
        self._trained = {alias for alias in spec.placements if spec.has_memory(alias)}
        self._waiting = deque(Job("train", alias) for alias in spec.placements if alias not in self._trained)
        self._testing = False
        self._groups: dict[int, _Group] = {}
        self._tries: dict[Job, int] = {}
        self._events: list[Event] = []
        self._fatal: MilpRayError | None = None
        self._stopping = False

    def spec(self) -> FinalSpec:
        """What the job works on; for ranks, which get it from here rather than from Ray Train's records."""
        return self._spec

    def start(self, group: int, rank: int, place: Place) -> None:
        """A rank is up. What its group held when it was lost is handed out again."""
        found = self._groups.setdefault(group, _Group())
        found.places[rank] = place
        if rank:
            return
        found.starts += 1
        if found.job is not None:
            self._hand_back(found)
        elif found.starts > self._retries + 1:
            self._fatal = self._fatal or ClusterError(
                f"workers of the final job died {found.starts - 1} times before they took a user",
                expected="workers that have room for the base model",
                remedy="look into their logs in Ray's session folder; then resume",
            )

    def next(self, group: int) -> Job | Literal["wait"] | None:
        """The next job of a group; "wait" where others must end theirs first; None: there is no more."""
        if self._stopping or self._fatal is not None:
            return None
        if not self._waiting and not self._testing and not self._busy():
            self._testing = True
            self._waiting.extend(self._tests())
        found = self._groups[group]
        if self._waiting:
            found.job, found.starts = self._waiting.popleft(), 0
            return found.job
        # A group that is lost may hand its job back.
        return "wait" if self._busy() else None

    def end(self, group: int, reason: str, notes: Sequence[str] = ()) -> None:
        """How a group's job ended; empty reason: well."""
        found = self._groups[group]
        if found.job is not None:
            self._finish(found.job, reason, notes)
            found.job = None

    def fail(self, error: Mapping[str, object]) -> None:
        """An error after which no group can go on, as plain values."""
        from milp_ray.errors import from_plain

        self._fatal = self._fatal or from_plain(error)

    def stop(self) -> None:
        """Hand out nothing more; groups ask :meth:`stopping` on the way."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether groups are to leave what they are at."""
        return self._stopping or self._fatal is not None

    def news(self) -> tuple[list[Event], dict[str, object] | None]:
        """What has ended since the last call, and the error that ended all, as plain values."""
        events, self._events = self._events, []
        return events, self._fatal.to_plain() if self._fatal is not None else None

    def take_places(self) -> list[Place]:
        """The processes of all ranks that were started last; once, as process ids are used again."""
        places = [place for group in self._groups.values() for place in group.places.values()]
        for group in self._groups.values():
            group.places = {}
        return places

    def _busy(self) -> bool:
        return any(group.job is not None for group in self._groups.values())

    def _hand_back(self, group: _Group) -> None:
        job = group.job
        assert job is not None
        group.job = None
        self._tries[job] = self._tries.get(job, 0) + 1
        if self._tries[job] > self._retries:
            self._finish(job, f"its workers were lost {self._tries[job]} times", ())
        else:  # at the end: a job that takes its workers down meets other neighbours next time
            self._waiting.append(job)

    def _finish(self, job: Job, reason: str, notes: Sequence[str]) -> None:
        if job.step == "train" and not reason:
            self._trained.add(job.alias)
        self._events.append(Event(job.step, job.alias, reason, tuple(notes)))

    def _tests(self) -> list[Job]:
        """In the order of the data, each user beside the next one: the same pairs in every run of a study."""
        ring = [alias for alias in self._spec.placements if alias in self._trained]
        others = ring[1:] + ring[:1] if len(ring) > 1 else [None] * len(ring)
        return [
            Job("test", alias, other)
            for alias, other in zip(ring, others, strict=True)
            if not self._spec.score_file(alias).exists()
        ]
