"""Which group trains and tests which user in the final job, and how each task ended.

One actor stands between the driver and the groups of workers. Groups ask for the next task and tell
how it ended. Ray Train starts all workers again when one is lost. Then their tasks are handed out
again, and the loss is charged to the tasks of the lost ranks alone. A fault of a node or the
storage may pass, and is charged to no task. Retries, the end of a run and the pauses follow the
search's own policy (:mod:`milp_ray.tune.workers.failures`). This module knows no model and no text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from milp_ray.config.models import Study
from milp_ray.errors import ClusterError, MilpRayError, RunBusyError, from_plain
from milp_ray.ids import POPULATION
from milp_ray.layout import MEMORIES, SCORES, Layout
from milp_ray.memory.placement import Placement
from milp_ray.storage import pull
from milp_ray.tune.cluster.processes import WorkerProcess
from milp_ray.tune.cluster.shared import SharedUsers
from milp_ray.tune.workers.failures import FailurePolicy, Loss, Pauses

Step = Literal["share", "train", "test"]
_PAUSES = Pauses(1.0, 8.0)  # before workers that were started again try again


@dataclass(frozen=True)
class FinalSpec:
    """What the final job works on.

    Attributes:
        study: as the workers read it.
        users: references to the users' texts, by alias; the population's are those that the shared
            adapter is trained on.
        placements: the chosen ones, by alias.
        root: the run folder.
        session: id of the driver's session that its workers publish for.
        shared: placement of the adapter that all memories start from, which is trained before them
            and kept beside them; None where each starts afresh.
    """

    study: Study
    users: SharedUsers
    placements: Mapping[str, Placement]
    root: Path
    session: str = ""
    shared: Placement | None = None

    @property
    def layout(self) -> Layout:
        """The run's paths."""
        return Layout(self.root)

    def pull(self) -> None:
        """Get what other processes have written; for a run at a URL."""
        pull(self.root / MEMORIES, "*/*.json")
        pull(self.root / SCORES, "*.json")

    def has_memory(self, alias: str) -> bool:
        """Whether a user's memory is there."""
        return self.layout.memory_config(alias).exists()

    def placement(self, alias: str) -> Placement:
        """The placement of a user's memory, or of the shared adapter."""
        return self.shared if alias == POPULATION and self.shared else self.placements[alias]


@dataclass(frozen=True)
class FinalTask:
    """One user to be trained, or tested beside the memory of ``other``; or the shared adapter."""

    step: Step
    alias: str
    other: str | None = None


@dataclass(frozen=True)
class TaskResult:
    """How a task ended.

    Attributes:
        step, alias: of the task.
        reason: why it failed; empty on success.
        notes: what else people are told.
    """

    step: Step
    alias: str
    reason: str = ""
    notes: tuple[str, ...] = ()


class CoordinatorUpdate(NamedTuple):
    """What has happened since the last update.

    Attributes:
        results: of the tasks that have ended.
        faults: what people have not been told before.
        fatal: the error that ends the job, as plain values.
    """

    results: list[TaskResult]
    faults: list[str]
    fatal: dict[str, object] | None


@dataclass
class _Group:
    """A group of ranks that is up.

    Attributes:
        task: the one that it works on.
        is_lost: whether one of its ranks was lost.
        has_worked: whether it ever had a task.
        fault: of its node or the storage, not of its task.
        processes: of its ranks.
    """

    task: FinalTask | None = None
    is_lost: bool = False
    has_worked: bool = False
    fault: MilpRayError | None = None
    processes: dict[int, WorkerProcess] = field(default_factory=dict)


class Coordinator:
    """Hands out tasks: first the shared adapter, then all trainings, then all tests.

    Each needs all of the one before: memories start from the shared adapter, and tests need other
    users' memories.

    Args:
        spec: of the final job.
        retries: how often in a row a task is handed out again after its workers were lost; and how
            often in a row workers are started again that were lost before they had a task.
    """

    def __init__(self, spec: FinalSpec, retries: int) -> None:
        self._spec = spec
        spec.pull()
        self._trained = {alias for alias in spec.placements if spec.has_memory(alias)}
        self._is_shared = spec.shared is None or spec.has_memory(POPULATION)
        self._waiting = deque([] if self._is_shared else [FinalTask("share", POPULATION)])
        self._next_steps: deque[Callable[[], list[FinalTask]]] = deque([self._trainings, self._tests])
        self._groups: dict[int, _Group] = {}
        self._group_size = 1
        self._up = False
        # A task on its last try runs alone (see _take), so a loss past it fails the task at once.
        self._policy = FailurePolicy[FinalTask](
            retries,
            limit=retries + 1,
            suspends=False,
            pauses=_PAUSES,
            given_up=lambda times, last_words: _never_worked(times),
        )
        self._reached: dict[FinalTask, tuple[int, int]] = {}
        self._progress = 0
        self._results: list[TaskResult] = []
        self._faults: list[str] = []  # to be told
        self._fatal: MilpRayError | None = None
        self._stop_requested = False

    def spec(self) -> FinalSpec:
        """What the job works on; ranks ask here, so that it is not in Ray Train's records."""
        return self._spec

    def begin(self, size: int) -> float:
        """Workers are being started, in groups of ``size`` ranks, and earlier ones are gone.

        There may be fewer groups than before. The tasks of all earlier ones are handed out again.

        Returns:
            Seconds that the workers are to wait first; the more starts failed, the longer.
        """
        held = [(group.task, group.is_lost) for _, group in sorted(self._groups.items(), reverse=True)]
        self._groups, self._group_size, self._up = {}, size, True
        for task, is_lost in held:
            if task is None:
                continue
            if self._policy.is_past_retries(task):
                deaths = self._policy.deaths(task)
                times = f"{deaths} times in a row" if deaths > 1 else "once"
                self._finish(task, f"its workers were lost {times}", ())
            elif is_lost:
                self._waiting.append(task)
            else:
                self._waiting.appendleft(task)
        return self._policy.pause

    def start(self, group: int, rank: int, process: WorkerProcess) -> None:
        """A rank of a group is up."""
        self._groups.setdefault(group, _Group()).processes[rank] = process

    def lost(self, ranks: Collection[int]) -> list[WorkerProcess]:
        """Workers were lost, by their ranks over all groups; told once per start.

        Returns:
            The processes of all ranks, which are to be killed.
        """
        if not self._up:
            return []
        self._up = False
        numbers = {rank // self._group_size for rank in ranks}
        lost = [group for number, group in self._groups.items() if number in numbers]
        losses = [Loss(group.task, group.fault) for group in lost if group.task or group.fault]
        if not losses and not any(group.has_worked for group in lost):
            losses = [Loss()]
        verdict = self._policy.lost(*losses)
        for group in lost:
            group.is_lost = True
        if verdict.ends is not None:
            self._end_all(verdict.ends)
        elif verdict.is_news:
            fault = next(loss.error for loss in reversed(losses) if loss.error is not None)
            self._faults.append(str(fault).splitlines()[0])
        return [process for group in self._groups.values() for process in group.processes.values()]

    def next(self, group: int) -> FinalTask | Literal["wait"] | None:
        """The next task of a group; "wait": others must end theirs first; None: there is none."""
        if self._stop_requested or self._fatal is not None:
            return None
        while self._next_steps and not self._waiting and not self._busy():
            self._waiting.extend(self._next_steps.popleft()())
        task = self._take()
        if task is None:  # a group that is lost may hand its task back
            return "wait" if self._busy() else None
        found = self._groups[group]
        found.task, found.has_worked = task, True
        return task

    def kept(self, group: int, stage: int, step: int) -> None:
        """A checkpoint of a group's training was written; if it is a new one, the task got on."""
        task = self._groups[group].task
        if task is not None and (stage, step) > self._reached.get(task, (-1, -1)):
            self._reached[task] = (stage, step)
            self._got_on(task)

    def end(self, group: int, reason: str, notes: Sequence[str] = ()) -> None:
        """A group's task ended; an empty reason means success."""
        found = self._groups[group]
        if found.task is not None:
            self._finish(found.task, reason, notes)
            found.task = None

    def fail(self, group: int, error: Mapping[str, object]) -> None:
        """A rank of a group met an error, given as plain values.

        An error that would come again ends the job, and so does a driver that took the run over. An
        error that may pass (see :class:`MilpRayError`) is kept: it is the reason if it comes too
        often. Its rank then ends itself, which is charged to no task.
        """
        found = from_plain(error)
        if found.exit_code == 2 or isinstance(found, RunBusyError):
            self._end_all(found)
            return
        self._groups[group].fault = _with_node(found, self._groups[group].processes.values())

    def stop(self) -> bool:
        """Hand out nothing more; groups poll :meth:`stop_requested`. Whether any group is up."""
        self._stop_requested = True
        return self._up

    def stop_requested(self) -> bool:
        """Whether groups are to leave their tasks."""
        return self._stop_requested or self._fatal is not None

    def update(self) -> CoordinatorUpdate:
        """What has happened since the last call."""
        fatal = self._fatal.to_plain() if self._fatal is not None else None
        update = CoordinatorUpdate(self._results, self._faults, fatal)
        self._results, self._faults = [], []
        return update

    def progress(self) -> int:
        """How often tasks have ended or got on so far."""
        return self._progress

    def _end_all(self, error: MilpRayError) -> None:
        self._fatal = self._fatal or error

    def _busy(self) -> bool:
        return any(group.task is not None for group in self._groups.values())

    def _take(self) -> FinalTask | None:
        """The first waiting task; of those on their last try, only one runs at a time.

        Where workers are lost together, with their node say, nobody knows whose task took the
        others down. So one loss gives up one user at most.
        """
        alone = any(
            group.task is not None and self._policy.is_last_try(group.task) for group in self._groups.values()
        )
        for index, task in enumerate(self._waiting):
            if not (alone and self._policy.is_last_try(task)):
                del self._waiting[index]
                return task
        return None

    def _got_on(self, task: FinalTask) -> None:
        self._progress += 1
        self._policy.got_on(task)

    def _finish(self, task: FinalTask, reason: str, notes: Sequence[str]) -> None:
        if task.step == "train" and not reason:
            self._trained.add(task.alias)
        self._is_shared = self._is_shared or (task.step == "share" and not reason)
        self._got_on(task)
        self._results.append(TaskResult(task.step, task.alias, reason, tuple(notes)))

    def _trainings(self) -> list[FinalTask]:
        """Every user without a memory; nobody where the shared adapter failed, which was told."""
        if not self._is_shared:
            return []
        return [FinalTask("train", alias) for alias in self._spec.placements if alias not in self._trained]

    def _tests(self) -> list[FinalTask]:
        """Each user beside the next one by alias: the same pairs in every session."""
        ring = [alias for alias in self._spec.placements if alias in self._trained]
        others = ring[1:] + ring[:1] if len(ring) > 1 else [None] * len(ring)
        return [
            FinalTask("test", alias, other)
            for alias, other in zip(ring, others, strict=True)
            if not self._spec.layout.scores(alias).exists()
        ]


def _never_worked(times: int) -> ClusterError:
    return ClusterError(
        f"workers of the final job died {times} times in a row before they took a user",
        expected="workers that have room for the base model",
        remedy="look into their logs in Ray's session folder; then resume",
    )


def _with_node(error: MilpRayError, processes: Iterable[WorkerProcess]) -> MilpRayError:
    """The error of one of these processes, with its group's nodes added unless it names one."""
    nodes = " or ".join(sorted({process.host for process in processes if process.host}))
    (problem,) = error.problems
    if not nodes or "node" in problem.where or problem.fact.startswith("node "):
        return error
    where = f"node {nodes}, {problem.where}" if problem.where else f"node {nodes}"
    return type(error)(problem.fact, where=where, expected=problem.expected, remedy=problem.remedy)
