"""Lost workers: who is charged, who is asked again and when, and when the run ends."""

from __future__ import annotations

import pytest

from milp_ray.errors import ClusterError, MilpRayError
from milp_ray.memory.space import Placement
from milp_ray.trial.records import TrialRequest
from milp_ray.tune.workers.failures import Losses


def request(number: int = 0) -> TrialRequest:
    return TrialRequest("u", number, Placement(()), "random")


def full(free: float = 1.5) -> MilpRayError:
    return ClusterError(f"{free} of the GPU's 80 GiB are free")


def try_once(losses: Losses, node: str = "10.0.0.7", number: int = 0) -> bool:
    losses.given(request(number))
    return losses.unfit(request(number), node, full())


def test_a_worker_that_dies_is_its_trials_and_one_that_is_unfit_is_not() -> None:
    losses = Losses(retries=1)
    for _ in range(3):
        try_once(losses)
        losses.reported()
    assert losses.died(request()) and not losses.died(request()), "set-up faults used its retries up"
    assert losses.settled() == [request()] and not losses.settled()


def test_five_unfit_workers_in_a_row_end_the_run_with_the_last_ones_reason() -> None:
    losses = Losses(retries=0)
    for _ in range(4):
        try_once(losses)
    assert losses.verdict is None
    losses.reported()
    for _ in range(4):
        try_once(losses)
    assert losses.verdict is None, "a report between them was no sign of life"
    losses.given(request())
    losses.unfit(request(), "10.0.0.8", last := ClusterError("the last one"))
    assert losses.verdict is last and not losses.settled()


def test_both_kinds_are_one_row_and_a_report_is_no_life_after_a_trial() -> None:
    losses = Losses(retries=0)
    for number in range(4):
        losses.died(request(number))
    losses.reported()
    assert losses.verdict is None
    try_once(losses, number=4)
    assert losses.verdict is not None and losses.settled() == [request(number) for number in range(4)]


def test_workers_that_start_together_are_one_loss() -> None:
    """Else a node of eight GPUs whose mount comes late would end the run before it is asked twice."""
    losses = Losses(retries=0)
    for _ in range(4):
        for number in range(8):
            losses.given(request(number))
        for number in range(8):
            losses.unfit(request(number), "10.0.0.7", full())
    assert losses.verdict is None
    try_once(losses)
    assert losses.verdict is not None


def test_a_broken_node_is_asked_less_and_less_often() -> None:
    now = 0.0
    losses = Losses(retries=0, clock=lambda: now)
    pauses = []
    for _ in range(8):
        try_once(losses)
        losses.reported()
        began = now
        while losses.held_back:
            now += 1.0
        pauses.append(now - began)
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    try_once(losses, node="10.0.0.8")
    try_once(losses, node="10.0.0.9")
    assert losses.held_back == 2
    now += 2
    assert losses.held_back == 0, "another node's first fault is its own"


@pytest.mark.parametrize(
    ("node", "free", "news"),
    [("10.0.0.7", 1.5, False), ("10.0.0.7", 2.25, False), ("10.0.0.8", 1.5, True)],
)
def test_the_user_hears_once_of_every_fault_of_a_node(node: str, free: float, news: bool) -> None:
    losses = Losses(retries=0)
    assert try_once(losses)
    losses.given(request())
    assert losses.unfit(request(), node, full(free)) is news


def test_workers_that_all_die_alike_before_any_trial_ends_end_the_run_with_their_last_words() -> None:
    losses = Losses(retries=2)
    for number, pid in ((0, 11), (0, 12), (0, 13), (1, 14)):
        losses.died(request(number), f"its process {pid} ended: no module named zork")
        assert losses.verdict is None
    losses.died(request(1), "its process 15 ended: no module named zork")
    assert isinstance(losses.verdict, ClusterError)
    assert "all 5 workers so far were lost in the same way: its process 15 ended: no module" in str(
        losses.verdict
    )


@pytest.mark.parametrize("why", ["one trial's", "another way", "a trial ended", "nothing is known"])
def test_workers_that_die_each_for_a_trial_do_not(why: str) -> None:
    losses = Losses(retries=9)
    if why == "a trial ended":
        losses.ended()
    for count in range(6):
        words = "ended as another" if why == "another way" and count == 3 else "ended"
        losses.died(
            request(0 if why == "one trial's" else count % 2), "" if why == "nothing is known" else words
        )
    assert losses.verdict is None


def test_the_last_words_are_said_once_and_stand_in_the_verdict() -> None:
    losses = Losses(retries=0)
    losses.ended()
    assert losses.is_new("process 7 ended") and not losses.is_new("process 8 ended")
    for number in range(5):
        losses.died(request(number), f"process {number} ended")
    assert losses.last_words(request(2)) == "process 2 ended"
    assert "5 trials in a row were lost to failing workers, the last one: process 4 ended" in str(
        losses.verdict
    )
