"""Who trains and tests which user in the final job, and what has come of it.

One actor stands between the driver and the groups of workers. Groups ask for the next job and tell how it
ended. Ray Train starts all workers again when one is lost: what they held is handed out again then, and the
loss is charged to the jobs of the lost ranks alone. A fault of a node or the storage, which may pass, counts
as a start that came to nothing, and is charged to no job. No model and no text is here.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from milp_ray.config.models import Study
from milp_ray.errors import ClusterError, MilpRayError, RunBusyError, alike, from_plain
from milp_ray.layout import MEMORIES, SCORES, Layout
from milp_ray.memory.space import Placement
from milp_ray.storage import pull
from milp_ray.tune.cluster.processes import Place
from milp_ray.tune.cluster.shared import SharedUsers
from milp_ray.tune.workers.failures import pause_after

Step = Literal["train", "test"]
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 8.0  # seconds before workers that were started again try again


@dataclass(frozen=True)
class FinalSpec:
    """What the final job works on. ``placements`` are the chosen ones, by alias; ``session``: the id of the
    driver's session that its workers publish for."""

    study: Study
    users: SharedUsers
    placements: Mapping[str, Placement]
    root: Path
    session: str = ""

    @property
    def layout(self) -> Layout:
        """The run's paths."""
        return Layout(self.root)

    def look(self) -> None:
        """See what other processes have written (matters for a run at a URL)."""
        pull(self.root / MEMORIES, "*/*.json")
        pull(self.root / SCORES, "*.json")

    def has_memory(self, alias: str) -> bool:
        """Whether a user's memory is there."""
        return self.layout.memory_config(alias).exists()


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


class News(NamedTuple):
    """What has happened since the last one: jobs that ended, and faults, for people, not told before.

    ``fatal``: the error that ended all, as plain values.
    """

    events: list[Event]
    faults: list[str]
    fatal: dict[str, object] | None


@dataclass
class _Group:
    job: Job | None = None
    lost: bool = False
    worked: bool = False  # it had a job at all
    fault: MilpRayError | None = None  # of its node or the storage, not of its job
    places: dict[int, Place] = field(default_factory=dict)


class Assignments:
    """Hands out jobs: first all trainings, then, as they need other users' memories, all tests.

    Args:
        spec: of the final job.
        retries: how often in a row a job is handed out again after its workers were lost, and workers are
            started again that came to nothing.
    """

    def __init__(self, spec: FinalSpec, retries: int) -> None:
        self._spec, self._retries = spec, retries
        spec.look()
        self._trained = {alias for alias in spec.placements if spec.has_memory(alias)}
        self._waiting = deque(Job("train", alias) for alias in spec.placements if alias not in self._trained)
        self._testing = False
        self._groups: dict[int, _Group] = {}
        self._size = 1  # ranks of a group
        self._up = False
        self._losses: Counter[Job] = Counter()  # since a job last got on
        self._idle_losses = 0  # starts that came to nothing, since any job got on
        self._fault: MilpRayError | None = None  # the last one, since any job got on
        self._faults: list[str] = []  # to be told
        self._told: set[tuple[str, str]] = set()
        self._reached: dict[Job, tuple[int, int]] = {}
        self._moved = 0
        self._events: list[Event] = []
        self._fatal: MilpRayError | None = None
        self._stopping = False

    def spec(self) -> FinalSpec:
        """What the job works on; for ranks, which get it from here rather than from Ray Train's records."""
        return self._spec

    def begin(self, size: int) -> float:
        """Workers are being started, in groups of ``size`` ranks, and earlier ones are gone.

        There may be fewer groups than before: what any of the earlier ones held is handed out again.

        Returns:
            Seconds that they are to wait first: the longer, the more starts came to nothing.
        """
        held = [(group.job, group.lost) for _, group in sorted(self._groups.items(), reverse=True)]
        self._groups, self._size, self._up = {}, size, True
        for job, lost in held:
            if job is None:
                continue
            losses = self._losses[job]
            if losses > self._retries:
                times = f"{losses} times in a row" if losses > 1 else "once"
                self._finish(job, f"its workers were lost {times}", ())
            elif lost:
                self._waiting.append(job)
            else:
                self._waiting.appendleft(job)
        return pause_after(self._idle_losses, _FIRST_PAUSE, _LONGEST_PAUSE)

    def start(self, group: int, rank: int, place: Place) -> None:
        """A rank of a group is up."""
        self._groups.setdefault(group, _Group()).places[rank] = place

    def lost(self, ranks: Collection[int]) -> list[Place]:
        """Workers were lost, by their ranks over all groups; once for all that were started together.

        Returns:
            The processes of all ranks, which are to be ended.
        """
        if not self._up:
            return []
        self._up = False
        numbers = {rank // self._size for rank in ranks}
        for number, group in self._groups.items():
            group.lost = number in numbers
        lost = [group for group in self._groups.values() if group.lost]
        faults = [group.fault for group in lost if group.fault is not None]
        self._fault = faults[-1] if faults else self._fault
        self._losses.update(group.job for group in lost if group.job and group.fault is None)
        self._idle_losses += bool(faults) or not any(group.worked for group in lost)
        if self._idle_losses > self._retries:
            self._end_all(self._fault or _died(self._idle_losses))
        elif faults:
            self._tell(faults[-1])
        return [place for group in self._groups.values() for place in group.places.values()]

    def next(self, group: int) -> Job | Literal["wait"] | None:
        """The next job of a group; "wait" where others must end theirs first; None: there is no more."""
        if self._stopping or self._fatal is not None:
            return None
        if not self._waiting and not self._testing and not self._busy():
            self._testing = True
            self._waiting.extend(self._tests())
        job = self._take()
        if job is None:  # a group that is lost may hand its job back
            return "wait" if self._busy() else None
        found = self._groups[group]
        found.job, found.worked = job, True
        return job

    def kept(self, group: int, stage: int, step: int) -> None:
        """A state of a group's training is kept: of its losses, those before a new one no longer count."""
        job = self._groups[group].job
        if job is not None and (stage, step) > self._reached.get(job, (-1, -1)):
            self._reached[job] = (stage, step)
            self._got_on(job)

    def end(self, group: int, reason: str, notes: Sequence[str] = ()) -> None:
        """How a group's job ended; empty reason: well."""
        found = self._groups[group]
        if found.job is not None:
            self._finish(found.job, reason, notes)
            found.job = None

    def fail(self, group: int, error: Mapping[str, object]) -> None:
        """What a rank of a group could not get over, as plain values.

        An error that would come again ends all, and so does a driver that took the run over. One that may
        pass (see :class:`MilpRayError`) is kept as the reason in case it comes too often: the rank is to end
        itself, and is charged to no job.
        """
        found = from_plain(error)
        if found.exit_code == 2 or isinstance(found, RunBusyError):
            self._end_all(found)
            return
        self._groups[group].fault = _placed(found, self._groups[group].places.values())

    def stop(self) -> bool:
        """Hand out nothing more; groups ask :meth:`stopping` on the way. Whether any are up."""
        self._stopping = True
        return self._up

    def stopping(self) -> bool:
        """Whether groups are to leave what they are at."""
        return self._stopping or self._fatal is not None

    def news(self) -> News:
        """What has happened since the last call."""
        news = News(self._events, self._faults, self._fatal.to_plain() if self._fatal is not None else None)
        self._events, self._faults = [], []
        return news

    def moved(self) -> int:
        """How often jobs have ended or got on so far."""
        return self._moved

    def _tell(self, fault: MilpRayError) -> None:
        """Tell people of a fault, unless the like of it was told before."""
        if (kind := alike(fault)) not in self._told:
            self._told.add(kind)
            self._faults.append(str(fault).splitlines()[0])

    def _end_all(self, error: MilpRayError) -> None:
        self._fatal = self._fatal or error

    def _busy(self) -> bool:
        return any(group.job is not None for group in self._groups.values())

    def _take(self) -> Job | None:
        """The first waiting job, of those on their last try only one at a time.

        Workers that are lost together, with their node say, do not tell whose job took the others down: so
        one loss gives up one user at most.
        """
        alone = any(group.job is not None and self._is_last(group.job) for group in self._groups.values())
        for index, job in enumerate(self._waiting):
            if not (alone and self._is_last(job)):
                del self._waiting[index]
                return job
        return None

    def _is_last(self, job: Job) -> bool:
        return 0 < self._losses[job] == self._retries

    def _got_on(self, job: Job) -> None:
        self._moved += 1
        self._idle_losses, self._fault = 0, None
        self._losses.pop(job, None)

    def _finish(self, job: Job, reason: str, notes: Sequence[str]) -> None:
        if job.step == "train" and not reason:
            self._trained.add(job.alias)
        self._got_on(job)
        self._events.append(Event(job.step, job.alias, reason, tuple(notes)))

    def _tests(self) -> list[Job]:
        """In the run's order (of aliases), each user beside the next one: the same pairs in every session."""
        ring = [alias for alias in self._spec.placements if alias in self._trained]
        others = ring[1:] + ring[:1] if len(ring) > 1 else [None] * len(ring)
        return [
            Job("test", alias, other)
            for alias, other in zip(ring, others, strict=True)
            if not self._spec.layout.scores(alias).exists()
        ]


def _died(times: int) -> ClusterError:
    return ClusterError(
        f"workers of the final job died {times} times in a row before they took a user",
        expected="workers that have room for the base model",
        remedy="look into their logs in Ray's session folder; then resume",
    )


def _placed(error: MilpRayError, places: Iterable[Place]) -> MilpRayError:
    """An error of one of these processes, with its node, or its group's nodes, unless it names one."""
    nodes = " or ".join(sorted({place.host for place in places if place.host}))
    (problem,) = error.problems
    if not nodes or "node" in problem.where or problem.fact.startswith("node "):
        return error
    where = f"node {nodes}, {problem.where}" if problem.where else f"node {nodes}"
    return type(error)(problem.fact, where=where, expected=problem.expected, remedy=problem.remedy)
