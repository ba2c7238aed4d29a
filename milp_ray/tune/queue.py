"""Ready proposals for many users, computed ahead of need and off Tune's loop (DESIGN, decision 2).

One thread fits surrogates and proposes; the trials' loop only takes what is ready. The user served next is
the one with the fewest trials that were asked and have not ended, because its proposals know the most. A user
is planned for only when none of its own proposals is waiting, so that no proposal is older than it must be.
No Ray here: the queue is told when a trial ends, and does not care who runs it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milp_ray.memory.space import Placement

if TYPE_CHECKING:
    from milp_ray.search import Engine, Proposal

BASELINE = -1


@dataclass(frozen=True)
class Ticket:
    """One trial to run: whose, its number (:data:`BASELINE` for the no-memory measurement) and where."""

    alias: str
    number: int
    placement: Placement
    source: str


class ProposalQueue:
    """Keeps as many tickets ready as will be taken while the next ones are computed.

    More would only be older: what is proposed early knows less. The number follows from how long proposals
    take and how fast tickets go, both measured; it starts at ``workers`` and stays within four times that.

    Args:
        engines: one per user, by alias; resumed engines may hold pending trials, which are re-issued first.
        trials: budget per user; failed trials count.
        batch: proposals from one fit.
        workers: how many trials run at once.
    """

    def __init__(self, engines: Mapping[str, Engine], *, trials: int, batch: int, workers: int) -> None:
        self._engines = dict(engines)
        self._trials = trials
        self._batch = batch
        self._workers = max(workers, 1)
        self._taken: deque[float] = deque(maxlen=4 * self._workers)
        self._seconds = 0.0
        self._changed = threading.Condition()
        self._ready: deque[Ticket] = deque()
        self._issued: set[tuple[str, int]] = set()
        self._planning: str | None = None
        self._stopped = False
        self._error: BaseException | None = None
        for alias, engine in self._engines.items():
            if engine.reference is None:
                self._ready.append(Ticket(alias, BASELINE, Placement(()), "no memory"))
            self._ready.extend(_ticket(alias, proposal) for proposal in engine.pending)
        self._thread = threading.Thread(target=self._work, name="proposals", daemon=True)
        self._thread.start()

    def take(self, wait: float = 0.0) -> Ticket | None:
        """The next ticket, or None if none becomes ready within ``wait`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._ready) or self._done(), timeout=wait)
            if not self._ready:
                return None
            ticket = self._ready.popleft()
            self._issued.add((ticket.alias, ticket.number))
            self._taken.append(time.monotonic())
            self._changed.notify_all()
            return ticket

    def ended(self, alias: str, number: int) -> None:
        """A trial was told or failed: its user may be planned for again."""
        with self._changed:
            self._issued.discard((alias, number))
            self._changed.notify_all()

    def dropped(self, alias: str, number: int) -> None:
        """A trial was given up without an outcome (a stopped run): it stays pending in the event log."""
        self.ended(alias, number)

    @property
    def exhausted(self) -> bool:
        """Whether no ticket is ready and none will ever be."""
        with self._changed:
            return not self._ready and self._done()

    @property
    def live(self) -> int:
        """Trials that were taken and have not ended."""
        with self._changed:
            return len(self._issued)

    def stop(self) -> None:
        """No further proposals; :meth:`take` gives out nothing any more. Waits for the running fit."""
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()

    @property
    def failed(self) -> bool:
        """Whether the proposing thread ended early; :meth:`raise_error` says why."""
        return self._error is not None

    def raise_error(self) -> None:
        """Raise whatever made the proposing thread end early (a full disk, a bug)."""
        if self._error is not None:
            raise self._error

    def join(self, timeout: float | None = None) -> None:
        """Wait for the proposing thread to end."""
        self._thread.join(timeout)

    def _done(self) -> bool:
        if self._stopped or self._error is not None:
            return True
        return self._planning is None and all(self._budget(engine) <= 0 for engine in self._engines.values())

    def _budget(self, engine: Engine) -> int:
        """Trials that may still be asked for."""
        if engine.finished:
            return 0
        return self._trials - len(engine.observations) - len(engine.failures) - len(engine.pending)

    @property
    def ahead(self) -> int:
        """How many tickets should be ready now."""
        rate = 0.0
        if len(self._taken) > self._workers:
            rate = (len(self._taken) - 1) / max(self._taken[-1] - self._taken[0], 1e-3)
        return min(max(self._workers, math.ceil(rate * self._seconds) + 1), 4 * self._workers)

    def _next_user(self) -> str | None:
        if len(self._ready) >= self.ahead:
            return None
        waiting = {ticket.alias for ticket in self._ready if ticket.number != BASELINE}
        candidates = [
            (len(engine.pending), self._trials - self._budget(engine), index, alias)
            for index, (alias, engine) in enumerate(self._engines.items())
            if alias not in waiting and self._budget(engine) > 0
        ]
        return min(candidates)[-1] if candidates else None

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    alias = self._next_user()
                    while alias is None and not self._done():
                        self._changed.wait()
                        alias = self._next_user() if not self._stopped else None
                    if alias is None or self._stopped:
                        self._changed.notify_all()
                        return
                    self._planning = alias
                    engine = self._engines[alias]
                    count = min(self._batch, self._budget(engine))
                began = time.monotonic()
                proposals = engine.ask(count)
                with self._changed:
                    self._seconds = time.monotonic() - began
                    self._planning = None
                    if not self._stopped:
                        self._ready.extend(_ticket(alias, proposal) for proposal in proposals)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._planning = None
                self._error = error
                self._changed.notify_all()


def _ticket(alias: str, proposal: Proposal) -> Ticket:
    return Ticket(alias, proposal.id, proposal.placement, proposal.source)
