"""What the search cost: integrals over time, and the rule of who waits."""

from __future__ import annotations

import json

import pytest

from milp_ray.tune.proposals.overhead import SearchOverhead


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_integrals_run_between_the_first_ticket_and_the_end_of_a_run() -> None:
    clock = Clock()
    overhead = SearchOverhead(clock)
    overhead.mark(7, 3)  # before anything was taken: actors may not even have started
    clock.now += 50
    overhead.begin(4)
    overhead.mark(2, 0)
    clock.now += 10
    overhead.mark(0, 1)
    clock.now += 10
    overhead.end()
    clock.now += 1000  # between two cohorts
    overhead.begin(4)
    overhead.mark(0, 0)
    clock.now += 20
    overhead.end()
    found = overhead.result()
    assert found.seconds == 40 and found.workers == 4
    assert found.queue_depth == pytest.approx(2 * 10 / 40)
    assert found.waiting_share == pytest.approx(10 * 1 / (40 * 4))


def test_costs_of_proposals() -> None:
    overhead = SearchOverhead()
    assert overhead.result().proposal_median is None and "model: 0;" in overhead.result().line()
    for seconds in range(1, 101):
        overhead.proposed(float(seconds))
    found = overhead.result()
    assert (found.proposals, found.proposal_median, found.proposal_p95) == (100, 50.5, 96.0)
    assert json.loads(json.dumps(found.to_plain()))["proposal_p95"] == 96.0
    assert "median 50.50 s" in found.line()
