"""The queue of proposals: ahead of need, fair to users, quick to stop, honest about errors."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest

from milp_ray.errors import StorageError
from milp_ray.memory.space import Placement
from milp_ray.tune.queue import BASELINE, ProposalQueue, Ticket

ANYWHERE = Placement(((0, 8),))


@dataclass
class Asked:
    id: int
    placement: Placement = ANYWHERE
    source: str = "fake"


@dataclass
class FakeEngine:
    """Counts as an engine does; ``gate`` holds up its proposals, as a long fit would."""

    reference: dict[str, float] | None = None
    pending: list[Asked] = field(default_factory=list)
    observations: list[int] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    finished: str = ""
    gate: threading.Event | None = None
    error: Exception | None = None
    asks: list[int] = field(default_factory=list)

    def ask(self, count: int) -> list[Asked]:
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        self.asks.append(len(self.pending))
        first = len(self.pending) + len(self.observations) + len(self.failures)
        new = [Asked(first + i) for i in range(count)]
        self.pending.extend(new)
        return new

    def tell(self, number: int) -> None:
        self.pending = [asked for asked in self.pending if asked.id != number]
        self.observations.append(number)


def queue_of(
    engines: dict[str, FakeEngine], trials: int = 6, batch: int = 2, workers: int = 3
) -> ProposalQueue:
    return ProposalQueue(engines, trials=trials, batch=batch, workers=workers)  # type: ignore[arg-type]


def finish(queue: ProposalQueue, engines: dict[str, FakeEngine], ticket: Ticket) -> None:
    if ticket.number == BASELINE:
        engines[ticket.alias].reference = {}
    else:
        engines[ticket.alias].tell(ticket.number)
    queue.ended(ticket.alias, ticket.number)


def test_every_user_gets_its_budget_and_one_baseline() -> None:
    engines = {name: FakeEngine() for name in "abc"}
    queue = queue_of(engines)
    seen: list[tuple[str, int]] = []
    while not queue.exhausted:
        ticket = queue.take(wait=5)
        if ticket is not None:
            seen.append((ticket.alias, ticket.number))
            finish(queue, engines, ticket)
    assert sorted(seen) == sorted((name, number) for name in "abc" for number in range(-1, 6))
    queue.raise_error()


def test_a_user_is_planned_for_only_when_none_of_its_own_waits() -> None:
    engines = {"a": FakeEngine({}), "b": FakeEngine({})}
    queue = queue_of(engines, trials=8, batch=2, workers=3)
    tickets = [queue.take(wait=5) for _ in range(4)]
    assert [t.alias for t in tickets if t] == ["a", "a", "b", "b"]
    time.sleep(0.2)
    # Both users have two trials out when they are planned for again, never a stock of their own on top.
    assert engines["a"].asks[:2] == [0, 2] and engines["b"].asks[0] == 0
    queue.stop()


def test_pending_trials_of_a_killed_run_come_first_and_once() -> None:
    engines = {"a": FakeEngine({}, pending=[Asked(2), Asked(4)], observations=[0, 1, 3])}
    queue = queue_of(engines, trials=6)
    assert [queue.take(wait=5).number for _ in range(3)] == [2, 4, 5]  # type: ignore[union-attr]
    assert queue.take(wait=0.05) is None and queue.exhausted


def test_a_finished_study_proposes_nothing() -> None:
    queue = queue_of({"a": FakeEngine({}, observations=[0, 1], finished="space exhausted")}, trials=6)
    assert queue.take(wait=0.5) is None and queue.exhausted


def test_a_user_whose_trials_are_done_still_gets_its_baseline() -> None:
    engines = {"a": FakeEngine(None, observations=[0, 1])}
    queue = queue_of(engines, trials=2)
    ticket = queue.take(wait=5)
    assert ticket is not None and ticket.number == BASELINE
    assert queue.take(wait=0.05) is None and queue.exhausted


def test_taking_does_not_wait_for_a_fit() -> None:
    gate = threading.Event()
    queue = queue_of({"a": FakeEngine({}, gate=gate)})
    began = time.monotonic()
    assert queue.take() is None and not queue.exhausted
    assert time.monotonic() - began < 1
    gate.set()
    assert queue.take(wait=5) is not None
    queue.stop()


def test_stopping_gives_out_nothing_more_and_ends_the_thread() -> None:
    queue = queue_of({"a": FakeEngine({})})
    assert queue.take(wait=5) is not None
    queue.stop()
    queue.join(timeout=5)
    assert queue.take() is None and queue.exhausted


def test_an_error_of_the_proposing_thread_is_raised_to_whoever_started_it() -> None:
    queue = queue_of({"a": FakeEngine({}, error=StorageError("disk full"))})
    queue.join(timeout=5)
    assert queue.exhausted and queue.take() is None
    with pytest.raises(StorageError, match="disk full"):
        queue.raise_error()


def test_more_is_kept_ready_when_proposals_are_slow_and_trials_fast() -> None:
    queue = queue_of({"a": FakeEngine({})}, trials=10_000, batch=4, workers=2)
    assert queue.ahead == 2
    queue._seconds = 3.0
    queue._taken.extend(time.monotonic() + 0.5 * step for step in range(8))
    assert queue.ahead == 7  # two trials a second for three seconds, and one
    queue._seconds = 300.0
    assert queue.ahead == 8  # never more than four times the workers
    queue.stop()
