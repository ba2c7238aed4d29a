"""Proposers: the interface that the queue drives, and threads of this process behind it.

A plan is a snapshot, and proposing is a pure function of it. So where a plan is computed changes no
result. Ray actors are the other proposers (:mod:`milp_ray.tune.proposals.actors`). This module
knows no Ray. The queue decides what is proposed, and for which user first.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from milp_ray.errors import StorageError
from milp_ray.search.core.threads import ComputeThread
from milp_ray.search.propose import propose
from milp_ray.search.surrogates import Sampler, make_surrogate

if TYPE_CHECKING:
    from milp_ray.memory.space import MemorySpace
    from milp_ray.search import Candidates, Objective, Plan
    from milp_ray.search.core.records import EngineSettings

_log = logging.getLogger(__name__)


class Proposer(Protocol):
    """Computes several plans at once."""

    @property
    def free(self) -> int:
        """How many plans could begin at once now; 0 until the warm-up is over."""
        ...

    def listen(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` (from any thread) whenever :attr:`free` may have grown."""
        ...

    def submit(self, plan: Plan) -> Future[Candidates]:
        """Begin a plan; where none is free, it waits for its turn."""
        ...

    def close(self) -> None:
        """Take no more plans; those under way may never end."""
        ...


def needs_model(plan: Plan) -> bool:
    """Whether a plan fits a model, which takes seconds; any other is computed at once."""
    return not plan.initial and not is_free(plan.surrogate)


def is_free(surrogate: str) -> bool:
    """Whether a surrogate proposes without a model."""
    return isinstance(make_surrogate(surrogate), Sampler)


@dataclass(frozen=True)
class WarmUp:
    """What a process imports and compiles before it proposes; the same for all users of a study.

    Attributes:
        space, objectives, settings: of the study's engines.
    """

    space: MemorySpace
    objectives: Sequence[Objective]
    settings: EngineSettings

    def first(self) -> None:
        """Compile what the first proposals need; without a cache folder, each process does so."""
        self._up_to(self.settings.initial + self.settings.batch)

    def rest(self) -> None:
        """Compile what later proposals need; this may run beside proposals."""
        from milp_ray.search.surrogates.nuts import BUCKET

        first = self.settings.initial + self.settings.batch
        # In steps: each takes the cache folder's lock, which a restarted process may wait for.
        for trials in range(first + BUCKET, (self.settings.trials or first) + BUCKET, BUCKET):
            self._up_to(trials)

    @property
    def has_rest(self) -> bool:
        """Whether :meth:`rest` would do anything."""
        settings = self.settings
        return settings.surrogate == "saas" and (settings.trials or 0) > settings.initial + settings.batch

    def _up_to(self, trials: int) -> None:
        from milp_ray.search.engine import Engine
        from milp_ray.search.warm_up import warm_up

        settings = self.settings
        engine = Engine(
            self.space,
            self.objectives,
            # When the first model is fitted, initial trials may have failed, or still run.
            initial=max(1, settings.initial - 2 * settings.batch),
            batch=settings.batch,
            surrogate=settings.surrogate,
            surrogate_options=settings.surrogate_options,
            trials=settings.trials,
        )
        with contextlib.suppress(StorageError):
            warm_up(engine=engine, trials=trials)


class Threads:
    """Threads of this process that propose, after its warm-up.

    Args:
        count: plans at once. Each keeps a core busy beside the trials, and now and then Python's
            lock.
        warm_up: what the threads do before they take a plan; None: nothing.
    """

    def __init__(self, count: int = 1, warm_up: WarmUp | None = None) -> None:
        self._warm_up = warm_up
        self._jobs: queue.SimpleQueue[tuple[Plan, Future[Candidates]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._free = 0
        self._warming_up = count
        self._changed: Callable[[], None] = lambda: None
        self._closed = False
        # Daemon threads, and no executor: Python would wait for an executor's threads to finish a
        # fit before it ends.
        self._threads = [
            ComputeThread(self._serve, (slot,), name=f"proposer-{slot}") for slot in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def free(self) -> int:
        """How many threads could begin a plan now."""
        return self._free

    def listen(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever a thread has become free."""
        self._changed = changed

    def submit(self, plan: Plan) -> Future[Candidates]:
        """Queue a plan for the next free thread."""
        future: Future[Candidates] = Future()
        self._count(-1)
        self._jobs.put((plan, future))
        return future

    def close(self) -> None:
        """Take no more plans; those under way are not waited for."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)

    def _begin(self, slot: int) -> None:
        """Warm a slot up. An error here comes again in its first proposal, which tells of it."""
        if self._warm_up is not None and slot == 0:
            self._warm_up.first()

    def _begin_rest(self) -> None:
        """Once all slots are ready, compile what later proposals need."""
        if self._warm_up is not None:
            self._warm_up.rest()

    def _compute(self, slot: int, plan: Plan) -> Candidates:
        return propose(plan)

    def _serve(self, slot: int) -> None:
        self._quietly(lambda: self._begin(slot))
        with self._lock:
            self._free += 1
            self._warming_up -= 1
            last = self._warming_up == 0
        self._changed()
        if last and self._warm_up is not None and self._warm_up.has_rest:
            ComputeThread(self._quietly, (self._begin_rest,), name="warm-up").start()
        while (job := self._jobs.get()) is not None:
            plan, future = job
            try:
                result, error = self._compute(slot, plan), None
            except BaseException as failure:
                result, error = None, failure
            self._count(+1)
            if result is None or error is not None:
                future.set_exception(error or RuntimeError("a proposer gave nothing"))
            else:
                future.set_result(result)
            self._changed()

    def _count(self, change: int) -> None:
        with self._lock:
            self._free += change

    def _quietly(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            if not self._closed:
                _log.warning("a proposer could not be prepared: %s", type(error).__name__)
