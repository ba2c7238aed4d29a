"""The exporter: the right numbers under the documented names, and no series for each user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.util.metrics

from milp_ray.memory import MemorySpace, Placement
from milp_ray.search import Engine, Objective
from milp_ray.trial.records import BASELINE, TrialCost, TrialRequest
from milp_ray.tune.proposals.overhead import SearchOverhead
from milp_ray.tune.search.prometheus import (
    GAUGES,
    HISTOGRAMS,
    PREFIX,
    PrometheusExporter,
    StudyCounts,
    quantiles,
)

DOCS = (Path(__file__).parents[3] / "docs" / "dashboard.md").read_text(encoding="utf-8")
Series = tuple[str, tuple[tuple[str, str], ...]]


class Recorder:
    """Plays Ray's metrics."""

    def __init__(self) -> None:
        self.now: dict[Series, float] = {}
        self.observed: dict[Series, list[float]] = {}
        recorder = self

        class Metric:
            def __init__(self, name: str, description: str, *rest: Any) -> None:
                self.name, self.tags = name, tuple(rest[-1])

            def key(self, tags: dict[str, str]) -> Series:
                assert set(tags) == set(self.tags)
                return self.name.removeprefix(PREFIX), tuple(sorted(tags.items()))

            def set(self, value: float, tags: dict[str, str]) -> None:
                recorder.now[self.key(tags)] = value

            def observe(self, value: float, tags: dict[str, str]) -> None:
                recorder.observed.setdefault(self.key(tags), []).append(value)

        self.metric = Metric

    def value(self, name: str, **tags: str) -> float:
        return self.now[(name, tuple(sorted({"study": "s", **tags}.items())))]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(ray.util.metrics, "Gauge", found.metric)
    monkeypatch.setattr(ray.util.metrics, "Histogram", found.metric)
    return found


COUNTS = StudyCounts({"running": 2, "done": 7, "failed": 1}, {"waiting": 3, "searching": 2})


@pytest.fixture
def exporting(recorder: Recorder) -> Iterator[tuple[PrometheusExporter, Clock, SearchOverhead]]:
    clock = Clock()
    overhead = SearchOverhead(clock)
    made = PrometheusExporter("s", lambda: COUNTS, overhead, clock)
    yield made, clock, overhead
    made.close()


def request(alias: str, number: int) -> TrialRequest:
    return TrialRequest(alias, number, Placement(((0, 8),)), "x")


def engine() -> Engine:
    space = MemorySpace(num_layers=6, max_loras=6, ranks=(2, 4))
    objectives = (Objective("loss", "min"), Objective("rouge_l", "max"))
    return Engine(space, objectives, initial=4, surrogate="random", reference={"loss": 3.0, "rouge_l": 0.1})


def test_counts_and_what_the_meter_says(
    recorder: Recorder, exporting: tuple[PrometheusExporter, Clock, SearchOverhead]
) -> None:
    made, clock, overhead = exporting
    overhead.begin(workers=2)
    overhead.mark(ready=3, idle=1)
    clock.now += 10
    overhead.proposed(0.5)
    overhead.proposed(1.5)
    made.publish()
    assert recorder.value("trials", state="done") == 7 and recorder.value("users", state="waiting") == 3
    assert recorder.value("queue_depth") == 3 and recorder.value("waiting_share") == pytest.approx(0.5)
    made.publish()
    (costs,) = (seen for (name, _), seen in recorder.observed.items() if name == "proposal_seconds")
    assert costs == [0.5, 1.5]


def test_trials_give_seconds_tokens_and_volumes(
    recorder: Recorder, exporting: tuple[PrometheusExporter, Clock, SearchOverhead]
) -> None:
    made, clock, _ = exporting
    engines = {name: engine() for name in "abc"}
    with made.watching(engines):
        for alias, loss in zip("abc", (2.0, 1.0, 2.9), strict=True):
            (proposal,) = engines[alias].ask(1)
            made.on_trial_started(request(alias, proposal.id))
            clock.now += 4
            values = {"loss": loss, "rouge_l": 0.3}
            engines[alias].tell(proposal.id, values)
            cost = TrialCost(train_tokens=600, gpu_memory=5)
            made.on_trial_completed(request(alias, proposal.id), values, cost)
        made.on_trial_completed(
            request("a", BASELINE), {"loss": 3.0, "rouge_l": 0.1}, TrialCost(gpu_memory=9)
        )
        made.publish()
    volumes = sorted(each.hypervolume() for each in engines.values())
    assert volumes == pytest.approx([0.02, 0.2, 0.4])
    assert recorder.value("front_hypervolume", quantile="0.5") == pytest.approx(0.2)
    assert recorder.value("front_hypervolume", quantile="0.9") == pytest.approx(0.36)
    assert recorder.value("tokens_per_second") == pytest.approx(1800 / 12)
    assert recorder.value("gpu_memory_bytes") == 9.0
    (seconds,) = (seen for (name, _), seen in recorder.observed.items() if name == "trial_seconds")
    assert seconds == [4.0, 4.0, 4.0]
    clock.now += 61
    made.publish()
    assert recorder.value("tokens_per_second") == 0


def test_more_users_are_no_more_series(
    recorder: Recorder, exporting: tuple[PrometheusExporter, Clock, SearchOverhead]
) -> None:
    made, _, _ = exporting
    engines = {f"u-{number:013d}": engine() for number in range(30)}
    with made.watching(engines):
        for alias, one in engines.items():
            (proposal,) = one.ask(1)
            one.tell(proposal.id, {"loss": 2.0, "rouge_l": 0.3})
            made.on_trial_completed(request(alias, proposal.id), {"loss": 2.0, "rouge_l": 0.3}, None)
        made.publish()
    assert len(recorder.now) < 20
    assert not any("u-" in text for _, tags in recorder.now for _, text in tags)


def test_quantiles() -> None:
    assert quantiles([]) == {}
    assert quantiles([4.0]) == {0.1: 4.0, 0.5: 4.0, 0.9: 4.0}
    assert quantiles([0.0, 10.0]) == pytest.approx({0.1: 1.0, 0.5: 5.0, 0.9: 9.0})


def test_the_docs_name_every_metric_and_no_other() -> None:
    said = set(re.findall(rf"`ray_{PREFIX}(\w+)", DOCS))
    assert said == GAUGES.keys() | HISTOGRAMS.keys()
