"""The Searcher: outcomes reach the right engine once, whatever Tune says how often."""

from __future__ import annotations

import dataclasses
import pickle
import random
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from ray.tune.search import Searcher

from milp_ray.errors import ClusterError, ModelError, StorageError
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Engine, Objective
from milp_ray.trial.records import BASELINE, TrialCost, TrialReport, TrialRequest, TrialState
from milp_ray.tune.proposals.queue import ProposalQueue
from milp_ray.tune.search.ledger import TrialLedger
from milp_ray.tune.search.searcher import StudySearcher
from milp_ray.tune.workers.failures import FailurePolicy, Pauses

OBJECTIVES = (Objective("loss", "min"), Objective("rouge_l", "max"))
TRIALS = 5
LONG_PAUSES, NO_PAUSE = Pauses(2.0, 60.0), Pauses(0.0, 0.0)


class Seen:
    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.lost: list[tuple[str, int, bool]] = []
        self.ended: list[tuple[str, int, Mapping[str, float] | None, str]] = []
        self.costs: list[TrialCost | None] = []

    def on_trial_started(self, request: TrialRequest) -> None:
        self.started.append((request.alias, request.number))

    def on_trial_requeued(self, request: TrialRequest, is_charged: bool) -> None:
        self.lost.append((request.alias, request.number, is_charged))

    def on_trial_completed(
        self, request: TrialRequest, values: Mapping[str, float], cost: TrialCost | None
    ) -> None:
        self.ended.append((request.alias, request.number, values, ""))
        self.costs.append(cost)

    def on_trial_failed(self, request: TrialRequest, reason: str, cost: TrialCost | None) -> None:
        self.ended.append((request.alias, request.number, None, reason))
        self.costs.append(cost)


class Run:
    """A searcher over two users with model-free proposals, and a way to play Tune."""

    def __init__(
        self,
        log: Path | None = None,
        users: str = "ab",
        retries: int = 0,
        workers: int = 1,
        pauses: Pauses = LONG_PAUSES,
    ) -> None:
        space = MemorySpace(num_layers=6, max_loras=6, ranks=(2, 4))
        self.engines = {
            name: Engine(
                space,
                OBJECTIVES,
                initial=TRIALS,
                surrogate="random",
                trials=TRIALS,
                log=log and log / f"{name}.jsonl",
            )
            for name in users
        }
        self.queue = ProposalQueue(self.engines, trials=TRIALS, batch=2, workers=2)
        self.stop = False
        self.seen = Seen()
        self.said: list[str] = []
        self.ledger = TrialLedger(
            self.engines,
            self.queue,
            ("loss", "rouge_l"),
            FailurePolicy[TrialRequest](retries, pauses=pauses),
            (self.seen,),
            workers,
            self.said.append,
        )
        self.searcher = StudySearcher(self.ledger, lambda: self.stop)
        self.count = 0

    def next(self) -> tuple[str, dict[str, object]] | None:
        while True:
            self.count += 1
            config = self.searcher.suggest(f"id{self.count}")
            if config == Searcher.FINISHED or (config is None and self.queue.exhausted):
                return None
            if config is not None:
                assert isinstance(config, dict)
                return f"id{self.count}", config


COST = TrialCost(inject_seconds=1.5, eval_seconds=0.5, train_tokens=600, node="0a1b2c3d")
RUNNING = TrialReport.running("inject").to_result()


def good(number: float = 2.0) -> dict[str, object]:
    values = {"loss": number, "rouge_l": 0.2, "trainable_params": 5}
    return TrialReport.complete(values, COST).to_result()


def bad(reason: str) -> dict[str, object]:
    return TrialReport.failed(reason, COST).to_result()


def test_a_whole_study_with_out_of_order_ends_repeats_and_failures() -> None:
    run, rng = Run(), random.Random(0)
    live: list[tuple[str, dict[str, object]]] = []
    for step in range(1000):
        found = run.next() if len(live) < 3 else None
        if found is not None:
            live.append(found)
        elif live:
            trial_id, config = live.pop(rng.randrange(len(live)))
            failing = config["trial"] == 2
            result = bad("loss is not finite") if failing else good(2 + step / 1e3)
            run.searcher.on_trial_result(trial_id, result)
            for _ in range(2):  # Tune may say it twice
                run.searcher.on_trial_complete(trial_id, result)
        else:
            break
    for engine in run.engines.values():
        assert len(engine.observations) == TRIALS - 1 and [f.id for f in engine.failures] == [2]
        assert engine.reference is not None and not engine.pending
    assert len(run.seen.ended) == len(run.seen.started) == 2 * (TRIALS + 1)
    assert run.ledger.error is None


def test_configs_hold_alias_and_numbers_only() -> None:
    found = Run().next()
    assert found is not None
    assert found[1] == {"user": "a", "trial": BASELINE, "placement": ""}


def test_a_dead_worker_and_a_bad_value_fail_the_trial_and_a_stopped_one_stays_pending() -> None:
    run = Run(users="a")
    ids = {}
    for _ in range(4):
        found = run.next()
        assert found is not None
        ids[found[1]["trial"]] = found[0]
    run.searcher.on_trial_complete(ids[0], None, error=True)
    run.searcher.on_trial_complete(ids[1], good(float("nan")))
    run.searcher.on_trial_complete(ids[2], RUNNING)
    engine = run.engines["a"]
    assert [f.id for f in engine.failures] == [0, 1] and "max_failures" in engine.failures[0].reason
    assert 2 in [p.id for p in engine.pending] and not engine.observations
    run.searcher.on_trial_complete(ids[BASELINE], None, error=True)
    assert engine.reference is None  # it is inferred then, and a resume measures it again


def test_a_lost_worker_costs_a_retry_and_the_last_one_is_waited_for() -> None:
    run = Run(users="a", retries=1)
    live = []
    while (found := run.next()) is not None:
        live.append(found)
    assert run.searcher.suggest("none") is None, "a lost trial might still come back"
    for trial_id, _ in live[:2]:
        run.searcher.on_trial_complete(trial_id, None, error=True)
    again = [run.next(), run.next()]
    assert [config for _, config in live[:2]] == [found[1] for found in reversed(again) if found]
    assert [charged for *_, charged in run.seen.lost] == [True, True] and not run.seen.ended
    assert run.searcher.suggest("none") is None
    for found in again:
        assert found is not None
        run.searcher.on_trial_complete(found[0], None, error=True)
    # One of the two is the no-memory measurement; the other is told once the fault is known.
    assert [number for _, number, *_ in run.seen.ended] == [BASELINE]
    for trial_id, _ in live[2:]:
        run.searcher.on_trial_complete(trial_id, good())
    assert "max_failures" in run.seen.ended[0][3] and "max_failures" in run.seen.ended[1][3]
    assert not any(reason for *_, reason in run.seen.ended[2:])
    assert run.searcher.suggest("none") == Searcher.FINISHED


def take(run: Run, count: int) -> list[tuple[str, tuple[str, int]]]:
    """Start so many trials; their ids, users and numbers."""
    live = []
    for _ in range(count):
        found = run.next()
        assert found is not None
        live.append((found[0], (str(found[1]["user"]), int(str(found[1]["trial"])))))
    return live


def test_five_trials_lost_in_a_row_end_the_run_and_cost_no_budget(tmp_path: Path) -> None:
    run = Run(tmp_path)
    live = take(run, 6)
    for trial_id, _ in live[:5]:
        run.searcher.on_trial_complete(trial_id, None, error=True)
    assert isinstance(run.ledger.error, ClusterError) and run.next() is None
    assert "5 trials in a row" in str(run.ledger.error)
    assert {number for _, number, *_ in run.seen.ended} == {BASELINE}, "no log has it, and others may wait"
    resumed = Run(tmp_path)
    assert not any(engine.failures for engine in resumed.engines.values())
    again = {trial for _, trial in take(resumed, 2 * (TRIALS + 1))}
    assert {trial for _, trial in live} <= again and len(again) == 2 * (TRIALS + 1)


def test_what_a_trial_cost_is_in_the_log_with_the_attempts_before(tmp_path: Path) -> None:
    run = Run(tmp_path, users="a", retries=1)
    ids = {number: trial_id for trial_id, (_, number) in take(run, 3)}
    run.searcher.on_trial_complete(ids[0], None, error=True)
    run.searcher.on_trial_complete(take(run, 1)[0][0], good())
    run.searcher.on_trial_complete(ids[1], bad("out of memory"))
    run.searcher.on_trial_complete(ids[BASELINE], good())
    again = dataclasses.replace(COST, attempts=2)
    ended = [cost.ended for cost in run.seen.costs if cost is not None]
    assert len(ended) == 3 and 0 < time.time() - ended[0] < 60 and ended == sorted(ended)
    expected = [
        dataclasses.replace(cost, ended=at) for cost, at in zip((again, COST, COST), ended, strict=True)
    ]
    assert run.seen.costs == expected
    for engine in (run.engines["a"], Run(tmp_path, users="a").engines["a"]):
        (observation,), (failure,) = engine.observations, engine.failures
        logged = [
            TrialCost.from_plain(cost) for cost in (observation.cost, failure.cost, engine.reference_cost)
        ]
        assert logged == [dataclasses.replace(cost, ended=round(cost.ended, 4)) for cost in expected]


def test_lost_trials_count_once_another_ends_or_all_are_done(tmp_path: Path) -> None:
    run = Run(tmp_path, users="a")
    live = [(trial_id, number) for trial_id, (_, number) in take(run, TRIALS + 1)]
    ids = [trial_id for trial_id, number in live if number != BASELINE]
    for trial_id in ids[:3]:
        run.searcher.on_trial_complete(trial_id, None, error=True)
    assert not run.engines["a"].failures
    run.searcher.on_trial_complete(ids[3], bad("out of memory"))
    assert len(run.engines["a"].failures) == 4, "their worker lived: the others died by themselves"
    for trial_id, number in live:
        if number == BASELINE or trial_id == ids[4]:
            run.searcher.on_trial_complete(trial_id, None, error=True)
    assert len(run.engines["a"].failures) == 4
    assert run.searcher.suggest("none") == Searcher.FINISHED
    assert len(run.engines["a"].failures) == 5 and run.ledger.baselines_failed
    assert run.ledger.error is None and run.queue.running == 0


def unfit(run: Run, trial_id: str, fact: str = "its GPU cannot be used") -> None:
    """What a worker that cannot be set up tells of itself, and then Tune."""
    report = TrialReport.lost(ClusterError(fact), "10.0.0.7")
    run.searcher.on_trial_result(trial_id, report.to_result())
    run.searcher.on_trial_complete(trial_id, None, error=True)


def test_a_worker_that_cannot_be_set_up_costs_its_trial_nothing_and_is_told_of_once() -> None:
    run = Run(users="a", pauses=NO_PAUSE)  # no retries
    other = run.next()
    assert other is not None
    for _ in range(2 * 5):
        found = run.next()
        assert found is not None and found[1]["trial"] == 0
        unfit(run, found[0])
        run.searcher.on_trial_result(other[0], RUNNING)
    assert run.ledger.error is None and not run.seen.ended
    assert run.seen.lost == [("a", 0, False)] * 10
    assert run.said == ["node 10.0.0.7: its GPU cannot be used; its trials run elsewhere"]
    found = run.next()
    assert found is not None and found[1]["trial"] == 0
    run.searcher.on_trial_complete(found[0], good())
    assert len(run.engines["a"].observations) == 1 and not run.engines["a"].failures


def test_five_workers_in_a_row_that_cannot_be_set_up_end_the_run_and_lose_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, users="a", pauses=NO_PAUSE)
    (dead, number), *_ = [(trial_id, n) for trial_id, (_, n) in take(run, 2) if n != BASELINE]
    run.searcher.on_trial_complete(dead, None, error=True)  # one row with deaths
    for left in (3, 2, 1, 0):
        assert run.ledger.error is None
        unfit(run, take(run, 1)[0][0], f"{left} GiB are free")
    assert isinstance(run.ledger.error, ClusterError) and "0 GiB are free" in str(run.ledger.error)
    assert run.next() is None and not run.seen.ended
    resumed = Run(tmp_path, users="a")
    assert not resumed.engines["a"].failures
    assert {n for _, (_, n) in take(resumed, TRIALS + 1)} == {BASELINE, *range(TRIALS)} and number in range(5)


def test_after_one_fewer_trials_run_for_a_while_and_a_stop_is_seen() -> None:
    run = Run(users="ab", workers=3)
    first, second, third = take(run, 3)
    unfit(run, third[0])
    assert run.searcher.suggest("fourth") is None, "its node would be asked at once"
    run.searcher.on_trial_complete(second[0], good())
    assert isinstance(run.searcher.suggest("fourth"), dict), "the others have work"
    run.searcher.on_trial_complete(first[0], good())
    run.stop = True
    assert run.searcher.suggest("fifth") == Searcher.FINISHED


def test_a_stop_request_ends_the_asking() -> None:
    run = Run()
    run.stop = True
    assert run.next() is None


def test_a_full_disk_ends_the_run_with_our_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    found = run.next()
    assert found is not None

    def full(*_: object) -> None:
        raise StorageError("No space left on device")

    monkeypatch.setattr(run.engines["a"], "set_reference", full)
    run.searcher.on_trial_complete(found[0], good())
    assert isinstance(run.ledger.error, StorageError) and run.next() is None


def test_what_fails_every_trial_ends_the_run_and_keeps_the_trial_pending() -> None:
    run = Run(users="a")
    found = [run.next() for _ in range(2)]
    trial_id = next(f[0] for f in found if f and f[1]["trial"] == 0)
    fatal = ModelError("the weights cannot be loaded", remedy="fetch them again")
    run.searcher.on_trial_complete(trial_id, TrialReport.fatal(fatal).to_result())
    assert isinstance(run.ledger.error, ModelError) and str(run.ledger.error) == str(fatal)
    assert run.next() is None and 0 in [p.id for p in run.engines["a"].pending]


def test_a_bug_in_what_trials_report_ends_the_run_too() -> None:
    run = Run(users="a")
    found = run.next()
    assert found is not None
    run.searcher.on_trial_complete(found[0], TrialReport.complete({}).to_result())  # no values
    assert isinstance(run.ledger.error, KeyError) and run.next() is None


def test_tunes_snapshots_hold_nothing_of_the_search() -> None:
    assert run_state(Run().searcher) == {}


def run_state(searcher: StudySearcher) -> object:
    copy = pickle.loads(pickle.dumps(searcher))
    return vars(copy)


def test_workers_that_all_die_alike_end_the_run_with_the_reason_and_charge_nobody() -> None:
    """Such as a module that is missing on every node: the budget would be spent on it."""
    run = Run(retries=2)
    for _ in range(5):
        found = run.next()
        assert found is not None
        run.searcher.note_last_words(found[0], "ModuleNotFoundError at x.py:9: No module named 'zork'")
        run.searcher.on_trial_complete(found[0], error=True)
    assert "all 5 workers so far were lost in the same way: ModuleNotFoundError at" in str(run.ledger.error)
    assert run.said == ["a worker was lost: ModuleNotFoundError at x.py:9: No module named 'zork'"]
    assert not any(engine.failures for engine in run.engines.values())
    assert run.next() is None, "a run that is to end gives no more trials"


def test_a_trial_that_fails_for_its_worker_says_the_workers_last_words() -> None:
    run = Run(retries=0)
    first, second = run.next(), run.next()
    assert first is not None and second is not None
    while second[1]["trial"] == -1:  # a no-memory measurement stands in no log
        run.searcher.on_trial_complete(second[0], good())
        second = run.next()
        assert second is not None
    run.searcher.note_last_words(second[0], "its process ended")
    run.searcher.on_trial_complete(second[0], error=True)
    run.searcher.on_trial_complete(first[0], good())
    (failure,) = [failure for engine in run.engines.values() for failure in engine.failures]
    assert failure.reason.endswith("than ray.max_failures allows, the last one: its process ended")


def start(run: Run) -> TrialRequest:
    while (request := run.ledger.start()) is None or request.is_baseline:
        assert not run.queue.exhausted
    return request


def test_the_ledger_says_where_a_trial_stands(tmp_path: Path) -> None:
    run = Run(tmp_path, users="a", retries=1)
    request = start(run)
    assert run.ledger.state_of(request) is TrialState.RUNNING
    run.ledger.lose(request)
    assert run.ledger.state_of(request) is TrialState.WAITING and start(run) == request
    run.ledger.lose(request)  # past its retries: whose fault that is shows when another trial ends
    assert run.ledger.state_of(request) is TrialState.LOST and not run.engines["a"].failures
    stopped = start(run)
    run.ledger.end(stopped, TrialReport.running("inject"))
    assert run.ledger.state_of(stopped) is TrialState.ABANDONED
    run.ledger.end(start(run), TrialReport.from_result(good()))
    assert [failure.id for failure in run.engines["a"].failures] == [request.number]
    assert stopped.number in [proposal.id for proposal in Run(tmp_path, users="a").engines["a"].pending]


def groups_die(run: Run, count: int, reason: str = "a worker died: its process 7 ended") -> None:
    """Groups that restarted in place as often as may be, one trial after the other."""
    for _ in range(count):
        run.ledger.end(start(run), TrialReport.from_result(TrialReport.died_too_often(reason).to_result()))


def test_a_group_that_died_too_often_is_its_trials_fault_once_another_trial_ends(tmp_path: Path) -> None:
    run = Run(tmp_path, users="a", retries=2)
    groups_die(run, 1)
    assert not run.engines["a"].failures and not run.seen.lost, "it had its retries in place"
    run.ledger.end(start(run), TrialReport.from_result(good()))
    (failure,) = run.engines["a"].failures
    assert failure.reason == "a worker died: its process 7 ended", "its group says why itself"


def test_five_groups_in_a_row_that_died_too_often_end_the_run_at_no_trials_cost(tmp_path: Path) -> None:
    run = Run(tmp_path, retries=2)
    with pytest.raises(ClusterError, match=r"(5 trials in a row|all 5 workers so far) were lost"):
        groups_die(run, 5)
    assert run.said == ["a worker was lost: a worker died: its process 7 ended"]
    resumed = Run(tmp_path)
    assert not any(engine.failures for engine in resumed.engines.values())


def test_a_worker_that_cannot_be_set_up_while_the_run_stops_is_no_error_of_the_run(tmp_path: Path) -> None:
    """Tune ends a trial with its last result, without telling the searcher of it before."""
    run = Run(tmp_path, users="a")
    (trial_id, (_, number)), *_ = take(run, 1)
    run.stop = True
    report = TrialReport.lost(ClusterError("its GPU cannot be used"), "10.0.0.7").to_result()
    run.searcher.on_trial_complete(trial_id, report)
    assert run.ledger.error is None and not run.seen.ended
    assert number in {n for _, (_, n) in take(Run(tmp_path, users="a"), TRIALS + 1)}


def test_a_queue_that_runs_out_right_after_it_was_asked_leaves_no_trial_without_an_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(users="a")
    live = take(run, TRIALS + 1)
    live.sort(key=lambda one: one[1][1])
    for trial_id, (_, number) in live:
        if number < 3:
            run.searcher.on_trial_complete(trial_id, good())
        else:
            run.searcher.on_trial_complete(trial_id, None, error=True)
    answers = iter([False, True, True, True])
    monkeypatch.setattr(type(run.queue), "exhausted", property(lambda queue: next(answers)))
    assert run.searcher.suggest("none") is None, "it was not exhausted when it was asked"
    assert run.searcher.suggest("none") == Searcher.FINISHED
    assert len(run.engines["a"].failures) == 2


def test_a_damaged_report_ends_the_run_rather_than_tunes_loop() -> None:
    run = Run(users="a")
    (trial_id, _), *_ = take(run, 1)
    run.searcher.on_trial_result(trial_id, {"report": "{"})
    assert isinstance(run.ledger.error, ValueError) and run.next() is None


def test_an_outcome_that_is_told_twice_counts_once() -> None:
    run = Run(users="a")
    request = start(run)
    report = TrialReport.from_result(good())
    for _ in range(2):
        run.ledger.end(request, report)
        run.ledger.lose(request)
        run.ledger.report(request, report)
    assert len(run.seen.ended) == 1 and run.queue.running >= 0 and not run.seen.lost
