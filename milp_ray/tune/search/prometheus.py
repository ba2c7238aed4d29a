"""The metrics that a running study exports to Prometheus, through Ray's own metrics.

Their labels are the study's name and fixed words, so the number of series does not grow with the
users. Ray puts ``ray_`` before every name, and exports them from the driver's node.
docs/dashboard.md lists them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from milp_ray.trial.records import TrialCost, TrialRequest

if TYPE_CHECKING:
    from milp_ray.search import Engine
    from milp_ray.tune.proposals.overhead import SearchOverhead

PREFIX = "milp_ray_"
_PUBLISH_SECONDS = 2.0
_WINDOW_SECONDS = 60.0
_QUANTILES = (0.1, 0.5, 0.9)
_BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)

# name -> (description, label beside the study or "")
GAUGES: dict[str, tuple[str, str]] = {
    "trials": ("Trials by state: running, done, failed.", "state"),
    "users": ("Users by state: waiting, searching, searched, trained.", "state"),
    "waiting_share": ("Share of the workers' time that they waited for a proposal.", ""),
    "queue_depth": ("Proposals that are ready for a worker.", ""),
    "front_hypervolume": ("Quantiles, over users, of the front's hypervolume.", "quantile"),
    "gpu_memory_bytes": ("Largest GPU memory that a trial has used in one worker.", ""),
    "tokens_per_second": ("Training tokens of the trials that ended within the last minute, a second.", ""),
}
HISTOGRAMS: dict[str, str] = {
    "trial_seconds": "Seconds of a trial, from the proposal's leaving the queue to its result.",
    "proposal_seconds": "Seconds that a batch of proposals by a model took.",
}


@dataclass(frozen=True)
class StudyCounts:
    """How many trials and how many users a study has, by state."""

    trials: Mapping[str, int]
    users: Mapping[str, int]


@dataclass
class _Window:
    """A sum over the last minute."""

    began: float
    items: deque[tuple[float, float]] = field(default_factory=deque)

    def add(self, now: float, amount: float) -> None:
        self.items.append((now, amount))

    def rate(self, now: float) -> float:
        while self.items and self.items[0][0] < now - _WINDOW_SECONDS:
            self.items.popleft()
        span = min(_WINDOW_SECONDS, now - self.began)
        return sum(amount for _, amount in self.items) / span if span > 0 else 0.0


class PrometheusExporter:
    """Collects a study's metrics, and publishes them every two seconds. Thread-safe.

    It is one of the ledger's listeners. Make it while Ray is connected.

    Args:
        study: the study's name.
        counts: called by another thread for the study's present counts.
        overhead: what the search costs, if there is a search.
        clock: seconds, increasing.
    """

    def __init__(
        self,
        study: str,
        counts: Callable[[], StudyCounts],
        overhead: SearchOverhead | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from ray.util.metrics import Gauge, Histogram

        self._study, self._counts, self._overhead, self._clock = study, counts, overhead, clock
        self._gauges = {
            name: Gauge(PREFIX + name, text, ("study", label) if label else ("study",))
            for name, (text, label) in GAUGES.items()
        }
        self._histograms = {
            name: Histogram(PREFIX + name, text, list(_BUCKETS), ("study",))
            for name, text in HISTOGRAMS.items()
        }
        self._lock = threading.Lock()
        self._engines: Mapping[str, Engine] = {}
        self._volumes: dict[str, float] = {}
        self._begun: dict[TrialRequest, float] = {}
        self._tokens = _Window(clock())
        self._memory = 0.0
        self._costs_seen = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prometheus", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Publish once more, and stop."""
        self._ended.set()
        self._thread.join()
        self.publish()

    @contextlib.contextmanager
    def watching(self, engines: Mapping[str, Engine]) -> Iterator[None]:
        """Read the fronts of these engines, for the length of a Tune run."""
        self._engines = engines
        try:
            yield
        finally:
            self._engines = {}

    def on_trial_started(self, request: TrialRequest) -> None:
        """A trial went to a worker."""
        with self._lock:
            self._begun[request] = self._clock()

    def on_trial_requeued(self, request: TrialRequest, is_charged: bool) -> None:
        """A trial's worker is gone."""
        with self._lock:
            self._begun.pop(request, None)

    def on_trial_completed(
        self, request: TrialRequest, values: Mapping[str, float], cost: TrialCost | None
    ) -> None:
        """A trial was measured."""
        self._observe(request, cost)
        engine = self._engines.get(request.alias)
        if not request.is_baseline and engine is not None:
            volume = engine.hypervolume()
            with self._lock:
                self._volumes[request.alias] = volume

    def on_trial_failed(self, request: TrialRequest, reason: str, cost: TrialCost | None) -> None:
        """A trial failed."""
        self._observe(request, cost)

    def _observe(self, request: TrialRequest, cost: TrialCost | None) -> None:
        now = self._clock()
        with self._lock:
            if (began := self._begun.pop(request, None)) is not None:
                self._histograms["trial_seconds"].observe(now - began, {"study": self._study})
            if cost is not None:
                self._tokens.add(now, cost.train_tokens)
                self._memory = max(self._memory, cost.gpu_memory)

    def publish(self) -> None:
        """Set every gauge to its present value."""
        counts = self._counts()
        for name, states in (("trials", counts.trials), ("users", counts.users)):
            for state, count in states.items():
                self._set(name, count, state)
        with self._lock:
            self._set("tokens_per_second", self._tokens.rate(self._clock()))
            self._set("gpu_memory_bytes", self._memory)
            volumes = list(self._volumes.values())
        for share, value in quantiles(volumes).items():
            self._set("front_hypervolume", value, f"{share:g}")
        if self._overhead is not None:
            self._set("queue_depth", self._overhead.ready)
            self._set("waiting_share", self._overhead.result().waiting_share)
            fresh = self._overhead.costs(self._costs_seen)
            self._costs_seen += len(fresh)
            for seconds in fresh:
                self._histograms["proposal_seconds"].observe(seconds, {"study": self._study})

    def _set(self, name: str, value: float, label: str = "") -> None:
        tags = {"study": self._study} | ({GAUGES[name][1]: label} if label else {})
        self._gauges[name].set(value, tags)

    def _run(self) -> None:
        while not self._ended.wait(_PUBLISH_SECONDS):
            self.publish()


def quantiles(values: Sequence[float]) -> dict[float, float]:
    """The 0.1, 0.5 and 0.9 quantiles by linear interpolation; none of no values."""
    if not values:
        return {}
    ordered = sorted(values)
    found = {}
    for share in _QUANTILES:
        position = share * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        found[share] = ordered[low] + (position - low) * (ordered[high] - ordered[low])
    return found
