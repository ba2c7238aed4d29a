"""Lost workers: who is charged, who is asked again and when, and when the run ends."""

from __future__ import annotations

import pytest

from milp_ray.errors import ClusterError, MilpRayError
from milp_ray.tune.workers.failures import Action, FailurePolicy, Loss, Pauses, Verdict

Policy = FailurePolicy[int]  # of trials, by their numbers


def full(free: float = 1.5) -> MilpRayError:
    return ClusterError(f"{free} of the GPU's 80 GiB are free")


def cannot_start(
    policy: Policy, node: str = "10.0.0.7", task: int = 0, error: MilpRayError | None = None
) -> Verdict[int]:
    policy.started(task)
    return policy.lost(Loss(task, error or full(), node))


def dies(policy: Policy, task: int = 0, last_words: str = "") -> Action:
    return policy.lost(Loss(task, last_words=last_words)).actions[task]


def test_a_worker_that_dies_is_its_trials_and_one_that_cannot_be_set_up_is_not() -> None:
    policy = Policy(retries=1)
    for _ in range(3):
        verdict = cannot_start(policy)
        assert verdict.actions == {0: Action.RETRY} and not verdict.is_charged
        policy.reported()
    charged = policy.lost(Loss(0))
    assert charged.is_charged and charged.actions == {0: Action.RETRY}, "set-up faults used its retries up"
    assert dies(policy) is Action.SUSPEND
    assert policy.settle() == [0] and not policy.settle()


def test_five_set_up_faults_in_a_row_end_the_run_with_the_last_ones_reason() -> None:
    policy = Policy(retries=0)
    assert all(cannot_start(policy).ends is None for _ in range(4))
    policy.reported()
    assert all(cannot_start(policy).ends is None for _ in range(4)), (
        "a report between them was no sign of life"
    )
    last = ClusterError("the last one")
    assert cannot_start(policy, "10.0.0.8", error=last).ends is last and not policy.settle()


def test_both_kinds_are_one_row_and_a_report_is_no_life_after_a_trial() -> None:
    policy = Policy(retries=0)
    for task in range(4):
        verdict = policy.lost(Loss(task))
        assert verdict.actions == {task: Action.SUSPEND} and verdict.ends is None
    policy.reported()
    assert cannot_start(policy, task=4).ends is not None and policy.settle() == [0, 1, 2, 3]


def test_workers_that_start_together_are_one_loss() -> None:
    """A node of eight GPUs whose mount comes late must not end the run before it is asked twice."""
    policy = Policy(retries=0)
    for _ in range(4):
        for task in range(8):
            policy.started(task)
        assert all(policy.lost(Loss(task, full(), "10.0.0.7")).ends is None for task in range(8))
    assert cannot_start(policy).ends is not None


def test_workers_that_are_lost_together_are_one_loss() -> None:
    policy = Policy(retries=2, limit=2)
    both = policy.lost(Loss(0, full()), Loss(1, full()), Loss(2))
    assert both.actions == dict.fromkeys(range(3), Action.RETRY) and both.ends is None
    assert policy.deaths(2) == 1 and not policy.deaths(0)
    assert policy.lost(Loss()).ends is not None, "one that came to nothing is in the row as well"


def test_a_broken_node_is_asked_less_and_less_often() -> None:
    now = 0.0
    policy = Policy(retries=0, clock=lambda: now)
    pauses = []
    for _ in range(8):
        cannot_start(policy)
        policy.reported()
        began = now
        while policy.held_back:
            now += 1.0
        pauses.append(now - began)
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    cannot_start(policy, node="10.0.0.8")
    cannot_start(policy, node="10.0.0.9")
    assert policy.held_back == 2
    now += 2
    assert policy.held_back == 0, "another node's first fault is its own"


def test_workers_that_start_together_wait_longer_each_time_until_a_task_gets_on() -> None:
    policy = Policy(retries=9, limit=9, pauses=Pauses(1.0, 3.0))
    waits = [policy.pause]
    for _ in range(3):
        policy.lost(Loss())
        waits.append(policy.pause)
    assert waits == [0, 1, 2, 3]
    policy.got_on(0)
    assert policy.pause == 0


def test_a_task_that_runs_alone_on_its_last_try_has_failed_at_once() -> None:
    policy = Policy(retries=2, suspends=False)
    assert dies(policy) is Action.RETRY and not policy.is_last_try(0)
    assert dies(policy) is Action.RETRY and policy.is_last_try(0)
    assert dies(policy) is Action.FAIL and policy.deaths(0) == 3 and not policy.settle()
    policy.got_on(0)
    assert dies(policy) is Action.RETRY, "it got on: the first one again"


@pytest.mark.parametrize(
    ("node", "free", "news"),
    [("10.0.0.7", 1.5, False), ("10.0.0.7", 2.25, False), ("10.0.0.8", 1.5, True)],
)
def test_the_user_hears_once_of_every_fault_of_a_node(node: str, free: float, news: bool) -> None:
    policy = Policy(retries=0)
    assert cannot_start(policy).is_news
    assert cannot_start(policy, node, error=full(free)).is_news is news


def test_workers_that_all_die_alike_before_any_trial_ends_end_the_run_with_their_last_words() -> None:
    policy = Policy(retries=2)
    for task, pid in ((0, 11), (0, 12), (0, 13), (1, 14)):
        loss = Loss(task, last_words=f"its process {pid} ended: no module named zork")
        assert policy.lost(loss).ends is None
    ends = policy.lost(Loss(1, last_words="its process 15 ended: no module named zork")).ends
    assert isinstance(ends, ClusterError)
    assert "all 5 workers so far were lost in the same way: its process 15 ended: no module" in str(ends)


@pytest.mark.parametrize(
    "why",
    ["one trial's", "another way", "a trial ended", "one ended in an earlier session", "nothing is known"],
)
def test_workers_that_die_each_for_a_trial_do_not(why: str) -> None:
    policy = Policy(retries=9)
    if why == "a trial ended":
        policy.got_on(99)
    if why == "one ended in an earlier session":
        policy.has_worked()
    for count in range(6):
        words = "ended as another" if why == "another way" and count == 3 else "ended"
        task = 0 if why == "one trial's" else count % 2
        assert policy.lost(Loss(task, last_words="" if why == "nothing is known" else words)).ends is None


def test_the_last_words_are_said_once_and_stand_in_the_verdict() -> None:
    policy = Policy(retries=0)
    policy.has_worked()
    verdicts = [policy.lost(Loss(task, last_words=f"process {task} ended")) for task in range(5)]
    assert [verdict.is_news for verdict in verdicts] == [True, False, False, False, False]
    assert policy.last_words(2) == "process 2 ended"
    assert "5 trials in a row were lost to failing workers, the last one: process 4 ended" in str(
        verdicts[-1].ends
    )
