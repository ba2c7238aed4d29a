"""Whether the search held up the trials: cost of proposals, ready requests, waiting workers.

A worker waits for a proposal while it has no trial, no request is ready, and trials are left that
it could get. Never more workers count as waiting than trials are left. A worker that starts, loads
a model or is replaced has a trial already, so that time does not count.

The clock of a Tune run goes from the first request taken to the last trial's end. Time between the
Tune runs of a study (cohorts) does not count. Only this process's session is measured: a resumed
run measures itself.
"""

from __future__ import annotations

import dataclasses
import statistics
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class SearchMetrics:
    """What a session's search cost.

    Attributes:
        proposals: batches that a model proposed; the initial design and samplers cost nothing.
        proposal_median, proposal_p95: seconds that such a batch took; None without any.
        queue_depth: mean number of ready requests over time.
        waiting_share: share of the workers' time that they waited for a proposal.
        seconds: time measured.
        workers: number of workers that ran trials at once.
    """

    proposals: int
    proposal_median: float | None
    proposal_p95: float | None
    queue_depth: float
    waiting_share: float
    seconds: float
    workers: int

    def to_plain(self) -> dict[str, object]:
        """The metrics as JSON keeps them, rounded."""
        return {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in dataclasses.asdict(self).items()
        }

    def line(self) -> str:
        """The metrics on one line, for people."""
        cost = (
            f"median {self.proposal_median:.2f} s, 95 % under {self.proposal_p95:.2f} s; "
            if self.proposal_median is not None and self.proposal_p95 is not None
            else ""
        )
        return (
            f"proposals by a model: {self.proposals}; {cost}{self.queue_depth:.1f} trials ready on average; "
            f"workers waited for a proposal {100 * self.waiting_share:.1f} % of the time"
        )


class SearchOverhead:
    """Integrates the queue's state over time. Thread-safe.

    One object serves all Tune runs of a session.

    Args:
        clock: seconds, increasing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._costs = array("d")
        self._workers = 0
        self._since: float | None = None
        self._ready = self._idle = 0
        self._seconds = self._depth = self._waited = self._offered = 0.0

    def begin(self, workers: int) -> None:
        """A Tune run's first request was taken; later calls of the same run have no effect."""
        with self._lock:
            if self._since is None:
                self._workers, self._since = workers, self._clock()
                self._ready = self._idle = 0

    def mark(self, ready: int, idle: int) -> None:
        """From now on there are ``ready`` requests, and ``idle`` workers wait for one."""
        with self._lock:
            self._integrate()
            self._ready, self._idle = ready, idle

    def end(self) -> None:
        """The Tune run is over."""
        with self._lock:
            self._integrate()
            self._since = None

    def proposed(self, seconds: float) -> None:
        """A model proposed a batch."""
        with self._lock:
            self._costs.append(seconds)

    @property
    def ready(self) -> int:
        """Number of requests that are ready now."""
        return self._ready

    def costs(self, since: int = 0) -> list[float]:
        """Seconds that each proposed batch took, in order, from number ``since`` on."""
        with self._lock:
            return list(self._costs[since:])

    def result(self) -> SearchMetrics:
        """The metrics up to now."""
        with self._lock:
            self._integrate()
            costs = sorted(self._costs)
            return SearchMetrics(
                proposals=len(costs),
                proposal_median=statistics.median(costs) if costs else None,
                proposal_p95=costs[min(len(costs) - 1, int(0.95 * len(costs)))] if costs else None,
                queue_depth=self._depth / self._seconds if self._seconds else 0.0,
                waiting_share=self._waited / self._offered if self._offered else 0.0,
                seconds=self._seconds,
                workers=self._workers,
            )

    def _integrate(self) -> None:
        if self._since is None:
            return
        now = self._clock()
        span, self._since = now - self._since, now
        self._seconds += span
        self._depth += span * self._ready
        self._waited += span * self._idle
        self._offered += span * self._workers
