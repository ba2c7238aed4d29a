"""Who computes proposals: the interface that the queue drives, and threads of this process as one answer.

Plans are snapshots and proposing is a pure function of them, so where it happens changes no result. Actors of
a Ray cluster are the other answer: :mod:`milp_ray.tune.proposals.actors`. No Ray here. What is to be
proposed, and for whom first, is the queue's business.
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
        """How many plans could be begun at once now; 0 while nothing is prepared yet."""
        ...

    def listen(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` (from any thread) whenever :attr:`free` may have grown."""
        ...

    def submit(self, plan: Plan) -> Future[Candidates]:
        """Begin a plan. More than :attr:`free` are kept until there is room."""
        ...

    def close(self) -> None:
        """Take no more plans; those under way may never end."""
        ...


def needs_model(plan: Plan) -> bool:
    """Whether a plan fits a model, which takes seconds; any other is quicker done than sent anywhere."""
    return not plan.initial and not is_free(plan.surrogate)


def is_free(surrogate: str) -> bool:
    """Whether a surrogate proposes without a model."""
    return isinstance(make_surrogate(surrogate), Sampler)


@dataclass(frozen=True)
class Preparation:
    """What has to be imported and compiled before a process proposes; the same for all users of a study.

    Attributes:
        space, objectives, settings: of the study's engines.
    """

    space: MemorySpace
    objectives: Sequence[Objective]
    settings: EngineSettings

    def first(self) -> None:
        """What the first proposals need. Without a cache folder everything works, but is compiled anew."""
        self._up_to(self.settings.initial + self.settings.batch)

    def rest(self) -> None:
        """What later ones need, so that none of them compiles anything. Harmless beside proposals."""
        from milp_ray.search.surrogates.nuts import BUCKET

        first = self.settings.initial + self.settings.batch
        # In steps, as each holds the cache folder's lock, which a restarted process may be waiting for.
        for trials in range(first + BUCKET, (self.settings.trials or first) + BUCKET, BUCKET):
            self._up_to(trials)

    @property
    def has_rest(self) -> bool:
        """Whether :meth:`rest` would do anything."""
        settings = self.settings
        return settings.surrogate == "saas" and (settings.trials or 0) > settings.initial + settings.batch

    def _up_to(self, trials: int) -> None:
        from milp_ray.search.engine import Engine
        from milp_ray.search.warm_up import prepare

        settings = self.settings
        engine = Engine(
            self.space,
            self.objectives,
            # Some of the initial trials may fail, or run still, when the first model is fitted.
            initial=max(1, settings.initial - 2 * settings.batch),
            batch=settings.batch,
            surrogate=settings.surrogate,
            surrogate_options=settings.surrogate_options,
            trials=settings.trials,
        )
        with contextlib.suppress(StorageError):
            prepare(engine=engine, trials=trials)


class Threads:
    """Plans computed by threads of this process, after it has been prepared.

    Args:
        count: plans at once. Each keeps a core busy beside the trials, and Python's lock from time to time.
        preparation: done by the threads before they take a plan; None for nothing.
    """

    def __init__(self, count: int = 1, preparation: Preparation | None = None) -> None:
        self._preparation = preparation
        self._jobs: queue.SimpleQueue[tuple[Plan, Future[Candidates]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._free = 0
        self._preparing = count
        self._changed: Callable[[], None] = lambda: None
        self._closed = False
        # Daemons, and not an executor, whose threads would hold up the end of Python by the length of a fit.
        self._threads = [
            ComputeThread(self._serve, (slot,), name=f"proposer-{slot}") for slot in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def free(self) -> int:
        """See :class:`Proposer`."""
        return self._free

    def listen(self, changed: Callable[[], None]) -> None:
        """See :class:`Proposer`."""
        self._changed = changed

    def submit(self, plan: Plan) -> Future[Candidates]:
        """See :class:`Proposer`."""
        future: Future[Candidates] = Future()
        self._count(-1)
        self._jobs.put((plan, future))
        return future

    def close(self) -> None:
        """See :class:`Proposer`."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)

    def _begin(self, slot: int) -> None:
        """Make a slot ready. Whatever goes wrong here goes wrong in its first proposal too, and is told."""
        if self._preparation is not None and slot == 0:
            self._preparation.first()

    def _go_on(self) -> None:
        """Once all slots are ready: what later proposals need."""
        if self._preparation is not None:
            self._preparation.rest()

    def _compute(self, slot: int, plan: Plan) -> Candidates:
        return propose(plan)

    def _serve(self, slot: int) -> None:
        self._quietly(lambda: self._begin(slot))
        with self._lock:
            self._free += 1
            self._preparing -= 1
            last = self._preparing == 0
        self._changed()
        if last and self._preparation is not None and self._preparation.has_rest:
            ComputeThread(self._quietly, (self._go_on,), name="prepare").start()
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
