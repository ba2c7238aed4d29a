"""Workers of a comparison side by side: each takes the next piece, and is replaced if lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray

from milp_ray.config.models import Study
from milp_ray.errors import MilpRayError
from milp_ray.tune.cluster.resources import on_device, trial_resources
from milp_ray.tune.comparison.worker import Task, Worker

Result = TypeVar("Result")
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Piece(Generic[Result]):
    """A call of a worker.

    Attributes:
        method: name of the worker's method.
        arguments: of the call.
        label: what it is, for people: aliases and names of methods.
        done: is given what came of it.
        lost: is given the reason, if workers were lost on it too often.
    """

    method: str
    arguments: tuple[object, ...]
    label: str
    done: Callable[[Result], object]
    lost: Callable[[str], object]


class Pool:
    """Workers on one base model.

    Args:
        study: whose base it is, and what a worker asks of the cluster.
        root: the comparison's folder.
        marker: name of a file in it.
        stop_requested: looked at twice a second.
        notify: is told of lost workers.

    Raises:
        ClusterError: the cluster could not run a single worker.
    """

    def __init__(
        self,
        study: Study,
        root: Path,
        marker: str,
        stop_requested: Callable[[], bool],
        notify: Callable[[str], object],
    ) -> None:
        self._stop_requested, self._notify = stop_requested, notify
        self._resources = trial_resources(study, stop_requested, notify)
        self._study = on_device(study, self._resources)
        self._root, self._marker = root, marker
        self._task: Task | None = None
        self._begun: list[Any] = []
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Piece[Any], int]] = {}

    @property
    def study(self) -> Study:
        """The study as workers read it."""
        return self._study

    @property
    def size(self) -> int:
        """How many workers there are at most."""
        return self._resources.concurrent

    def begin(self, task: Task) -> None:
        """Turn to a condition; nothing is at work."""
        self._task = task
        self._begun = []
        for worker in self._idle:
            self._turn(worker)

    def work(self, pieces: Sequence[Piece[Any]]) -> None:
        """Have all pieces done; returns early when it is asked to stop.

        Raises:
            MilpRayError: a worker's, which every other would have alike.
        """
        waiting = deque((piece, 0) for piece in pieces)
        while (waiting or self._busy) and not self._stop_requested():
            while waiting and (worker := self._free()) is not None:
                piece, tries = waiting.popleft()
                call = getattr(worker, piece.method).remote(*piece.arguments)
                self._busy[call] = (worker, piece, tries)
            for piece, tries in self._ended():
                waiting.append((piece, tries))

    def close(self) -> None:
        """End the workers, whatever they do."""
        for worker in [*self._idle, *(worker for worker, _, _ in self._busy.values())]:
            ray.kill(worker)
        self._idle.clear()
        self._busy.clear()

    def _free(self) -> Any | None:
        if self._idle:
            return self._idle.pop()
        return self._new() if len(self._busy) < self.size else None

    def _new(self) -> Any:
        per_worker = dict(self._resources.per_worker)
        options: dict[str, Any] = {
            "num_cpus": per_worker.pop("CPU", 0),
            "num_gpus": per_worker.pop("GPU", 0),
            "max_restarts": 0,
        }
        if memory := per_worker.pop("memory", None):
            options["memory"] = memory
        worker: Any = (
            ray.remote(Worker)
            .options(**options, resources=per_worker)
            .remote(self._study, self._root, self._marker, self._resources.cpus_per_worker)
        )
        self._turn(worker)
        return worker

    def _turn(self, worker: Any) -> None:
        if self._task is not None:
            self._begun.append(worker.begin.remote(self._task))

    def _ended(self) -> Iterator[tuple[Piece[Any], int]]:
        """Pieces that are to be done again, since their workers were lost."""
        ended, _ = ray.wait(list(self._busy), timeout=_POLL_SECONDS)
        for call in ended:
            worker, piece, tries = self._busy.pop(call)
            try:
                result = ray.get(call)
            except ray.exceptions.RayTaskError as error:
                _raise_known(error, self._begun)
                self._lost(worker)
                if (again := self._again(piece, tries, str(error.cause))) is not None:
                    yield again
            except ray.exceptions.RayError as error:
                self._lost(worker)
                if again := self._again(piece, tries, f"its worker was lost ({type(error).__name__})"):
                    yield again
            else:
                self._idle.append(worker)
                piece.done(result)

    def _again(self, piece: Piece[Any], tries: int, why: str) -> tuple[Piece[Any], int] | None:
        most = self._study.ray.max_failures
        if tries < most:
            self._notify(f"{piece.label}: {why}; it is tried again")
            return piece, tries + 1
        self._notify(f"{piece.label}: {why}; given up after {tries + 1} tries")
        piece.lost(why)
        return None

    def _lost(self, worker: Any) -> None:
        """A worker that failed in an unforeseen way may be broken: another takes its place."""
        ray.kill(worker)


def _raise_known(error: ray.exceptions.RayTaskError, begun: Sequence[Any]) -> None:
    """Raise a worker's error that every other worker would have; faults that may pass return.

    Raises:
        MilpRayError: the worker's own.
    """
    causes = [error.cause]
    for call in ray.wait(list(begun), num_returns=len(begun), timeout=0)[0] if begun else []:
        try:
            ray.get(call)
        except ray.exceptions.RayTaskError as earlier:
            causes.insert(0, earlier.cause)
        except ray.exceptions.RayError:
            continue
    for cause in causes:
        if isinstance(cause, MilpRayError):
            raise cause from None
