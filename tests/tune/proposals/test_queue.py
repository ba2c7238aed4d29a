"""The queue of proposals: ahead of need, fair to users, quick to stop, honest about errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from milp_ray.errors import SearchError, StorageError
from milp_ray.memory.placement import Placement
from milp_ray.search.core.records import EngineSettings, ProposalCounts
from milp_ray.trial.records import BASELINE, TrialRequest
from milp_ray.tune.proposals import queue as queue_module
from milp_ray.tune.proposals import threads
from milp_ray.tune.proposals.overhead import SearchOverhead
from milp_ray.tune.proposals.queue import ProposalQueue
from milp_ray.tune.proposals.threads import Proposer, Threads

ANYWHERE = Placement(((0, 8),))


@dataclass
class Asked:
    id: int
    placement: Placement = ANYWHERE
    source: str = "fake"


@dataclass
class FakePlan:
    """What the queue sees of a plan; ``configs`` of them are wanted."""

    engine: FakeEngine
    count: int
    surrogate: str = "gp"
    initial: bool = False

    def propose(self) -> list[int]:
        if self.engine.gate is not None:
            assert self.engine.gate.wait(10)
        if self.engine.error is not None:
            raise self.engine.error
        return [0] * self.count


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
    initial: int = 0
    blunt: bool = False  # nothing that is proposed is new

    @property
    def counts(self) -> ProposalCounts:
        ended = len(self.observations) + len(self.failures)
        pending, told, failed = len(self.pending), len(self.observations), len(self.failures)
        return ProposalCounts(pending + ended, pending, told, failed)

    @property
    def settings(self) -> EngineSettings:
        return EngineSettings(self.initial, 2, "gp", {}, None)

    def plan(self, count: int) -> FakePlan:
        self.asks.append(len(self.pending))
        return FakePlan(self, count, initial=self.counts.asked < self.initial)

    def accept(self, plan: FakePlan, configs: list[int]) -> list[Asked]:
        first = self.counts.asked
        new = [] if self.blunt else [Asked(first + i) for i in range(len(configs))]
        self.pending.extend(new)
        return new

    def tell(self, number: int) -> None:
        self.pending.remove(next(asked for asked in self.pending if asked.id == number))
        self.observations.append(number)


@pytest.fixture(autouse=True)
def fake_plans_propose(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (queue_module, threads):
        monkeypatch.setattr(module, "propose", lambda plan: plan.propose())


def queue_of(
    engines: dict[str, FakeEngine],
    trials: int = 6,
    batch: int = 2,
    workers: int = 3,
    proposer: Proposer | None = None,
    overhead: SearchOverhead | None = None,
    warm_start: Callable[[Any], object] | None = None,
) -> ProposalQueue:
    return ProposalQueue(
        engines,  # type: ignore[arg-type]
        trials=trials,
        batch=batch,
        workers=workers,
        proposer=proposer,
        overhead=overhead,
        warm_start=warm_start,
    )


def finish(queue: ProposalQueue, engines: dict[str, FakeEngine], request: TrialRequest) -> None:
    if request.number == BASELINE:
        engines[request.alias].reference = {}
    else:
        engines[request.alias].tell(request.number)
    queue.complete(request)


def test_every_user_gets_its_budget_and_one_baseline() -> None:
    engines = {name: FakeEngine() for name in "abc"}
    queue = queue_of(engines)
    seen: list[tuple[str, int]] = []
    while not queue.exhausted:
        request = queue.take(wait=5)
        if request is not None:
            seen.append((request.alias, request.number))
            finish(queue, engines, request)
    assert sorted(seen) == sorted((name, number) for name in "abc" for number in range(-1, 6))
    queue.raise_error()


def test_a_user_is_planned_for_only_when_none_of_its_own_waits() -> None:
    engines = {"a": FakeEngine({}), "b": FakeEngine({})}
    queue = queue_of(engines, trials=8, batch=2, workers=3)
    requests = [queue.take(wait=5) for _ in range(4)]
    assert [t.alias for t in requests if t] == ["a", "a", "b", "b"]
    time.sleep(0.2)
    # Both users have two trials out when they are planned for again, and never more in stock.
    assert engines["a"].asks[:2] == [0, 2] and engines["b"].asks[0] == 0
    queue.stop()


def test_pending_trials_of_a_killed_run_come_first_and_once() -> None:
    engines = {"a": FakeEngine({}, pending=[Asked(2), Asked(4)], observations=[0, 1, 3])}
    queue = queue_of(engines, trials=6)
    assert [queue.take(wait=5).number for _ in range(3)] == [2, 4, 5]  # type: ignore[union-attr]
    assert queue.take(wait=0.05) is None and queue.exhausted


@pytest.mark.parametrize("measured", [True, False])
def test_a_user_that_can_learn_is_measured_without_memory_before_its_trials(measured: bool) -> None:
    engines = {name: FakeEngine() for name in "abc"}
    engines["c"] = FakeEngine(observations=[0, 1])  # resumed: it had its chance
    warm_started: list[object] = []
    queue = queue_of(engines, workers=3, warm_start=lambda engine: warm_started.append(engine.reference))
    first = [queue.take(wait=5) for _ in range(4)]
    assert [(t.alias, t.number) for t in first if t][:2] == [("a", BASELINE), ("b", BASELINE)]
    assert {t.alias for t in first[2:] if t} == {"c"} and not warm_started
    assert queue.take(wait=0.1) is None or not warm_started
    assert first[0] is not None
    if measured:
        engines["a"].reference = {"loss": 1.0}
    queue.complete(next(t for t in first if t and t.alias == "a"))  # or it failed: then the user goes without
    while (request := queue.take(wait=5)) is not None and request.alias != "a":
        pass
    assert request is not None and request.number == 0
    assert warm_started == [{"loss": 1.0} if measured else None]
    queue.stop()


def test_a_finished_study_proposes_nothing() -> None:
    queue = queue_of({"a": FakeEngine({}, observations=[0, 1], finished="space exhausted")}, trials=6)
    assert queue.take(wait=0.5) is None and queue.exhausted


def test_a_user_whose_trials_are_done_still_gets_its_baseline() -> None:
    engines = {"a": FakeEngine(None, observations=[0, 1])}
    queue = queue_of(engines, trials=2)
    request = queue.take(wait=5)
    assert request is not None and request.number == BASELINE
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


@pytest.mark.parametrize("initial", [0, 9])  # with a model, whose plan lands later, and without
def test_a_bug_in_proposing_says_for_whom(initial: int) -> None:
    engines = {
        "a": FakeEngine({}, finished="done"),
        "b": FakeEngine({}, error=KeyError("x"), initial=initial),
    }
    queue = queue_of(engines)
    queue.join(timeout=5)
    with pytest.raises(KeyError) as error:
        queue.raise_error()
    assert error.value.__notes__ == ["this happened while proposing for b"]


def test_more_is_kept_ready_when_proposals_are_slow_and_trials_fast() -> None:
    queue = queue_of({"a": FakeEngine({})}, trials=10_000, batch=4, workers=2)
    assert queue.ahead == 2
    queue._costs.clear()
    queue._costs.append(3.0)
    queue._taken.extend(time.monotonic() + 0.5 * step for step in range(8))
    assert queue.ahead == 7  # two trials a second for three seconds, and one
    queue._costs.append(1000.0)
    assert queue.ahead == 8  # never more than four times the workers
    queue.stop()


def test_users_are_served_one_after_the_other_and_none_is_left_out() -> None:
    engines = {f"u{number}": FakeEngine(initial=2) for number in range(20)}
    queue = queue_of(engines, trials=6, workers=4)
    firsts: dict[str, int] = {}
    lasts: dict[str, int] = {}
    live: list[TrialRequest] = []
    step = 0
    while not queue.exhausted:
        request = queue.take(wait=0.3 if live else 5) if len(live) < 4 else None
        if request is None and live:
            finish(queue, engines, live.pop(0))
        elif request is not None:
            live.append(request)
            step += 1
            firsts.setdefault(request.alias, step)
            lasts[request.alias] = step
    for request in live:
        finish(queue, engines, request)
    queue.raise_error()
    assert step == 20 * 7 and all(len(engine.observations) == 6 for engine in engines.values())
    # Served in turn, the first user's last trial would come after 6/7 of all. (On a busy machine
    # plans come late, and other users' requests are taken meanwhile.)
    assert lasts["u0"] < 0.7 * step, "the first user was at work almost to the end"
    assert sorted(firsts, key=firsts.__getitem__) == [f"u{number}" for number in range(20)]


def test_several_plans_are_in_flight_and_cheap_ones_pass_them() -> None:
    gate = threading.Event()
    engines = {
        "a": FakeEngine({}, gate=gate),
        "b": FakeEngine({}, gate=gate),
        "c": FakeEngine({}, initial=99),
    }
    proposer = Threads(2)
    queue = queue_of(engines, trials=4, workers=2, proposer=proposer)
    assert [queue.take(wait=5).alias for _ in range(2)] == ["c", "c"]  # type: ignore[union-attr]
    deadline = time.monotonic() + 5
    while proposer.free and time.monotonic() < deadline:
        time.sleep(0.01)
    assert proposer.free == 0 and engines["a"].asks == engines["b"].asks == [0]
    gate.set()
    seen: set[str] = set()
    while seen != {"a", "b", "c"}:  # which of the two comes first is the threads' luck
        request = queue.take(wait=5)
        assert request is not None, f"only {seen} were given anything"
        seen.add(request.alias)
    queue.stop()
    proposer.close()


def test_a_model_is_not_asked_before_it_is_prepared() -> None:
    """Never inside a proposal is anything compiled: the initial trials go on meanwhile."""
    ready = threading.Event()

    class Slow(Threads):
        def _begin(self, slot: int) -> None:
            assert ready.wait(10)

    proposer = Slow(1)
    engines = {"a": FakeEngine({}), "b": FakeEngine({}, initial=99)}
    queue = queue_of(engines, trials=4, workers=2, proposer=proposer)
    assert queue.take(wait=5).alias == "b"  # type: ignore[union-attr]
    assert not engines["a"].asks
    ready.set()
    assert "a" in {queue.take(wait=5).alias for _ in range(5)}  # type: ignore[union-attr]
    queue.stop()
    proposer.close()


def test_proposals_that_are_never_new_end_the_run_rather_than_spin() -> None:
    queue = queue_of({"a": FakeEngine({}, blunt=True)})
    queue.join(timeout=5)
    with pytest.raises(SearchError, match="a: 8 batches of proposals in a row held nothing new"):
        queue.raise_error()


def test_an_event_costs_as_little_with_many_users_as_with_few() -> None:
    """Counts the looks at engines, and no seconds: once, each event looked at all of them."""
    looks = 0

    class Counted(FakeEngine):
        @property
        def counts(self) -> ProposalCounts:
            nonlocal looks
            looks += 1
            return super().counts

    engines: dict[str, FakeEngine] = {f"u{number}": Counted({}, initial=9) for number in range(2000)}
    queue = queue_of(engines, trials=2, workers=4)
    began = looks
    for _ in range(200):
        request = queue.take(wait=5)
        assert request is not None
        finish(queue, engines, request)
    assert looks - began < 200 * 10
    queue.stop()


def test_the_meter_sees_workers_that_wait() -> None:
    gate = threading.Event()
    overhead = SearchOverhead()
    engines = {"a": FakeEngine({}, gate=gate), "b": FakeEngine({}, initial=2)}
    queue = queue_of(engines, trials=2, workers=2, overhead=overhead)
    for _ in range(2):
        request = queue.take(wait=5)
        assert request is not None and request.alias == "b"
        finish(queue, engines, request)
    time.sleep(0.3)  # both workers wait for the proposals of a
    gate.set()
    for _ in range(2):
        request = queue.take(wait=5)
        assert request is not None
        finish(queue, engines, request)
    queue.stop()
    found = overhead.result()
    assert found.proposals == 1 and found.proposal_median is not None and found.proposal_median >= 0.3
    assert 0.5 < found.waiting_share <= 1 and found.workers == 2
