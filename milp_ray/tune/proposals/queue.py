"""Ready proposals for many users, computed ahead of need and outside Tune's loop.

One thread decides which user is planned for, and appends proposals to the event log. A proposer
computes the plans that need a model, several at once. Tune's loop only takes what is ready
(docs/decisions.md, 2).

First comes the user that runs dry first: the one with the fewest pending trials (asked and not
ended). Its next proposals also know the most. Of several such users the first one in order comes
first. So users begin and end one after the other, and not all at once. A user is planned for only
while none of its own proposals is waiting, so that no proposal is older than it must be.

Every event costs O(log users). The queue knows no Ray: it is told when a trial ends, and does not
care who runs it. One queue serves the users of one Tune run.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milp_ray.errors import MilpRayError, SearchError
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.placement import Placement
from milp_ray.search.core.threads import ComputeThread
from milp_ray.search.propose import propose
from milp_ray.trial.records import BASELINE, TrialRequest
from milp_ray.tune.proposals.overhead import SearchOverhead
from milp_ray.tune.proposals.threads import Proposer, Threads, is_free, needs_model

if TYPE_CHECKING:
    from milp_ray.search import Candidates, Engine, Plan, Proposal

_REFUSALS = 8  # batches of one user in a row of which nothing was new


@dataclass(slots=True)
class _User:
    """What the queue knows of a user without asking the engine.

    Attributes:
        left: trials that may still be asked for.
        pending: trials that were asked and have not ended.
        waiting: pending trials whose requests are in the queue.
        awaits_baseline: not planned for until its no-memory measurement has ended.
        stamp: changes with every new entry in a heap, which makes older entries stale.
    """

    index: int
    alias: str
    engine: Engine
    left: int
    asked: int
    pending: int
    waiting: int = 0
    planning: bool = False
    needs_baseline: bool = False
    awaits_baseline: bool = False
    refused: int = 0
    stamp: int = 0


class _Order:
    """A heap of users by who runs dry first; stale entries are skipped when they come up."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, _User]] = []
        self._most = 64

    def push(self, user: _User) -> None:
        if len(self._heap) >= self._most:
            self._heap = [entry for entry in self._heap if entry[2] == entry[3].stamp]
            heapq.heapify(self._heap)
            self._most = 2 * len(self._heap) + 64
        heapq.heappush(self._heap, (user.pending, user.index, user.stamp, user))

    def first(self) -> _User | None:
        while self._heap and self._heap[0][2] != self._heap[0][3].stamp:
            heapq.heappop(self._heap)
        return self._heap[0][3] if self._heap else None


class ProposalQueue:
    """Keeps as many requests ready as workers take while the next ones are computed.

    More requests would only be older: what is proposed early knows less. Their number follows from
    how long proposals take and how fast workers take requests, both measured. It starts at
    ``workers`` and stays within four times that. For a user without pending trials nothing more
    can be learned by waiting: it is planned for as soon as the proposer is free.

    Where a user learns from finished ones (``warm_start``), its no-memory measurement comes first,
    and its own trials once that has ended: it tells which finished users are near.

    Example:
        >>> from milp_ray.search import Engine, Objective
        >>> from milp_ray.memory.space import MemorySpace
        >>> space = MemorySpace(num_layers=4, max_loras=4, ranks=(8, 16))
        >>> objectives = [Objective("loss", "min")]
        >>> engine = Engine(space, objectives, surrogate="random", reference={"loss": 3.0})
        >>> queue = ProposalQueue({"u-1": engine}, trials=1, batch=1, workers=1)
        >>> request = queue.take(wait=10.0)
        >>> request.alias, request.number
        ('u-1', 0)
        >>> queue.stop()
        >>> queue.join()

    Args:
        engines: one per user, by alias; the pending trials of resumed engines are handed out first.
        trials: budget per user; failed trials count.
        batch: proposals from one fit.
        workers: how many trials run at once.
        proposer: computes plans that need a model; None: a thread of the queue's own.
        overhead: is told what the search costs.
        warm_start: called with a user's engine before the user is first planned for; None: users
            learn nothing from others.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        *,
        trials: int,
        batch: int,
        workers: int,
        proposer: Proposer | None = None,
        overhead: SearchOverhead | None = None,
        warm_start: Callable[[Engine], object] | None = None,
    ) -> None:
        self._batch = batch
        self._workers = max(workers, 1)
        self._own = Threads() if proposer is None else None
        self._proposer: Proposer = proposer or self._own or Threads()
        self._overhead = overhead or SearchOverhead()
        self._warm_start = warm_start
        self._taken: deque[float] = deque(maxlen=4 * self._workers)
        self._costs: deque[float] = deque(maxlen=8)
        self._changed = threading.Condition()
        self._ready: deque[TrialRequest] = deque()
        self._running = 0  # taken, and not ended
        self._computed: deque[tuple[_User, Plan, Future[Candidates], float]] = deque()
        self._planning = 0
        self._left = 0
        self._stopped = False
        self._error: BaseException | None = None
        self._model_free, self._modelled = _Order(), _Order()
        self._users = {
            alias: self._user(index, alias, engine, trials)
            for index, (alias, engine) in enumerate(engines.items())
        }
        self._proposer.listen(self._wake)
        self._thread = ComputeThread(self._work, name="proposals")
        self._thread.start()

    def take(self, wait: float = 0.0) -> TrialRequest | None:
        """The next request; None: none became ready within ``wait`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._ready) or self._done(), timeout=wait)
            if not self._ready:
                return None
            request = self._ready.popleft()
            self._running += 1
            self._taken.append(time.monotonic())
            self._overhead.begin(self._workers)
            if not request.is_baseline:
                user = self._users[request.alias]
                user.waiting -= 1
                self._offer(user)
            self._notify_all()
            return request

    def complete(self, request: TrialRequest) -> None:
        """A taken trial has its outcome: its user may be planned for again."""
        with self._changed:
            self._running -= 1
            user = self._users[request.alias]
            if request.is_baseline:
                user.awaits_baseline = False
            else:
                user.pending -= 1
            self._offer(user)
            self._notify_all()

    def abandon(self, request: TrialRequest) -> None:
        """A taken trial was given up in a stopped run: it stays pending in the event log."""
        with self._changed:
            self._running -= 1
            self._notify_all()

    def requeue(self, request: TrialRequest) -> None:
        """A taken trial lost its worker: it is handed out again, before all others."""
        with self._changed:
            self._running -= 1
            if not self._stopped:
                self._ready.appendleft(request)
                if not request.is_baseline:
                    self._users[request.alias].waiting += 1
            self._notify_all()

    @property
    def exhausted(self) -> bool:
        """Whether no request is ready, and none will ever be."""
        with self._changed:
            return not self._ready and self._done()

    @property
    def running(self) -> int:
        """Trials that were taken and have not ended."""
        with self._changed:
            return self._running

    def stop(self) -> None:
        """Propose no more and hand out nothing more; plans under way are forgotten."""
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._notify_all()
        self._overhead.end()
        if self._own is not None:
            self._own.close()

    @property
    def failed(self) -> bool:
        """Whether proposing ended early; :meth:`raise_error` says why."""
        return self._error is not None

    def raise_error(self) -> None:
        """Raise what made the proposing end early (a full disk, a bug), if anything did."""
        if self._error is not None:
            raise self._error

    def join(self, timeout: float | None = None) -> None:
        """Wait for the queue's thread to end."""
        self._thread.join(timeout)

    @property
    def ahead(self) -> int:
        """How many requests should be ready now."""
        rate = 0.0
        if len(self._taken) > self._workers:
            rate = (len(self._taken) - 1) / max(self._taken[-1] - self._taken[0], 1e-3)
        cost = sum(self._costs) / len(self._costs) if self._costs else 0.0
        return min(max(self._workers, math.ceil(rate * cost) + 1), 4 * self._workers)

    def _user(self, index: int, alias: str, engine: Engine, trials: int) -> _User:
        counts = engine.counts
        left = 0 if engine.finished else max(0, trials - counts.asked)
        user = _User(index, alias, engine, left, counts.asked, counts.pending)
        self._left += left
        user.needs_baseline = engine.reference is None
        if user.needs_baseline and (counts.pending or not left):
            self._enqueue_baseline(user)
        if counts.pending:
            self._enqueue(user, engine.pending)
        self._offer(user)
        return user

    def _enqueue(self, user: _User, proposals: Sequence[Proposal]) -> None:
        self._ready.extend(TrialRequest(user.alias, p.id, p.placement, p.source) for p in proposals)
        user.waiting += len(proposals)

    def _enqueue_baseline(self, user: _User) -> None:
        """Enqueue a user's no-memory measurement, from which its reference point follows."""
        user.needs_baseline = False
        self._ready.append(TrialRequest(user.alias, BASELINE, Placement(()), "no memory"))

    def _offer(self, user: _User) -> None:
        """Put a user into the heap it belongs in now, if any; called after each change to it."""
        user.stamp += 1  # makes its older entries stale
        if user.left > 0 and not (user.planning or user.awaits_baseline or user.waiting):
            engine = user.engine
            is_modelled = user.asked >= engine.settings.initial and not is_free(engine.settings.surrogate)
            (self._modelled if is_modelled else self._model_free).push(user)

    def _notify_all(self) -> None:
        """Wake waiting threads, and tell the overhead; the caller has the lock."""
        self._changed.notify_all()
        idle = 0 if self._ready else max(0, min(self._workers - self._running, self._left))
        self._overhead.mark(len(self._ready), idle)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _done(self) -> bool:
        return self._stopped or self._error is not None or (self._left == 0 and self._planning == 0)

    def _pick(self) -> _User | None:
        """The user to plan for now, if any."""
        modelled = self._modelled.first() if self._proposer.free > 0 else None
        if len(self._ready) >= self.ahead:
            early = modelled is not None and modelled.pending == 0 and len(self._ready) < 4 * self._workers
            return modelled if early else None
        model_free = self._model_free.first()
        if modelled is None or model_free is None:
            return modelled or model_free
        return min(modelled, model_free, key=lambda user: (user.pending, user.index))

    def _next(self) -> _User | tuple[_User, Plan, Future[Candidates], float] | None:
        """Wait for the next user to plan for, or computed plan to accept; None: all is done."""
        with self._changed:
            while not self._done():
                if self._computed:
                    return self._computed.popleft()
                user = self._pick()
                if user is not None:
                    user.planning = True
                    self._planning += 1
                    self._offer(user)
                    return user
                self._changed.wait()
            self._changed.notify_all()
            return None

    def _work(self) -> None:
        user: _User | None = None
        try:
            while (job := self._next()) is not None:
                if isinstance(job, _User):
                    user = job
                    self._plan(user)
                    continue
                user, plan, future, seconds = job
                configs = future.result()
                self._overhead.proposed(seconds)
                self._costs.append(seconds)
                self._accept(user, plan, configs)
        except BaseException as error:
            if user is not None and not isinstance(error, MilpRayError):  # ours say what they are about
                error.add_note(f"this happened while proposing for {user.alias}")
            with self._changed:
                self._error = error
                self._notify_all()

    def _plan(self, user: _User) -> None:
        if self._warm_start is not None and not user.asked:
            if user.needs_baseline:
                self._await_baseline(user)
                return
            self._warm_start(user.engine)
        plan = user.engine.plan(min(self._batch, user.left))
        if not needs_model(plan):
            self._accept(user, plan, propose(plan))
            return
        began = time.monotonic()

        def land(future: Future[Candidates]) -> None:
            with self._changed:
                self._computed.append((user, plan, future, time.monotonic() - began))
                self._changed.notify_all()

        self._proposer.submit(plan).add_done_callback(land)

    def _await_baseline(self, user: _User) -> None:
        with self._changed:
            user.planning, user.awaits_baseline = False, True
            self._planning -= 1
            if not self._stopped:
                self._enqueue_baseline(user)
            self._notify_all()

    def _accept(self, user: _User, plan: Plan, configs: Sequence[MemoryConfig]) -> None:
        proposals = user.engine.accept(plan, configs)
        finished = bool(user.engine.finished)
        with self._changed:
            user.planning = False
            self._planning -= 1
            left = 0 if finished else user.left - len(proposals)
            self._left -= user.left - left
            user.left = left
            user.asked += len(proposals)
            user.pending += len(proposals)
            user.refused = 0 if proposals or finished else user.refused + 1
            if user.refused >= _REFUSALS:
                raise SearchError(
                    f"{_REFUSALS} batches of proposals in a row held nothing new",
                    where=user.alias,
                    expected="proposals that were not made before",
                    remedy="resume; if it happens again, report it, and search anew with another surrogate",
                )
            if not self._stopped:
                if user.needs_baseline:
                    self._enqueue_baseline(user)
                self._enqueue(user, proposals)
            self._offer(user)
            self._notify_all()
