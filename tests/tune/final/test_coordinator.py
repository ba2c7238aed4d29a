"""Who gets which user in the final job, when groups end, are lost, and come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from milp_ray.config.models import Study
from milp_ray.errors import ClusterError, MilpRayError, ModelError, RunBusyError, StorageError, from_plain
from milp_ray.memory.space import Placement
from milp_ray.tune.cluster.processes import Place
from milp_ray.tune.final.coordinator import Assignments, Event, FinalSpec, Job

STUDY = Study.model_validate({"name": "t", "model": {"path": "m"}, "data": {"path": "d"}})
HERE = Place("node", 1)


def made(root: Path, users: str = "abc", retries: int = 2, groups: int = 2) -> Assignments:
    spec = FinalSpec(STUDY, {}, {user: Placement.from_key("0:4") for user in users}, root)
    assignments = Assignments(spec, retries)
    begin(assignments, groups)
    return assignments


def begin(assignments: Assignments, groups: int) -> None:
    """What Ray Train does when workers of one rank each are started, at first or again."""
    assignments.begin(1)
    for group in range(groups):
        assignments.start(group, 0, HERE)


def outcome(assignments: Assignments) -> list[tuple[str, str, str]]:
    return [(event.step, event.alias, event.reason) for event in assignments.news().events]


def work_off(assignments: Assignments, group: int = 0) -> list[Job]:
    jobs: list[Job] = []
    while isinstance(job := assignments.next(group), Job):
        jobs.append(job)
        assignments.end(group, "")
    return jobs


def test_all_trainings_come_before_all_tests(tmp_path: Path) -> None:
    assignments = made(tmp_path)
    assert assignments.next(0) == Job("train", "a")
    assert assignments.next(1) == Job("train", "b")
    assignments.end(0, "")
    assert assignments.next(0) == Job("train", "c")
    assignments.end(0, "")
    assert assignments.next(0) == "wait"  # b's training is not over
    assignments.end(1, "")
    tests = work_off(assignments, 1)
    assert tests == [Job("test", "a", "b"), Job("test", "b", "c"), Job("test", "c", "a")]
    assert assignments.next(0) is None and assignments.next(1) is None
    assert [step for step, _, _ in outcome(assignments)] == ["train"] * 3 + ["test"] * 3
    assert assignments.news() == ([], [], None)


def test_a_user_without_a_memory_is_not_tested(tmp_path: Path) -> None:
    assignments = made(tmp_path, "ab", groups=1)
    assignments.next(0)
    assignments.end(0, "loss is not finite", ["a note"])
    assert work_off(assignments) == [Job("train", "b"), Job("test", "b", None)]
    assert assignments.news().events[0] == Event("train", "a", "loss is not finite", ("a note",))


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    for user in "ab":
        (tmp_path / "memories" / user).mkdir(parents=True)
        (tmp_path / "memories" / user / "adapter_config.json").touch()
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "a.json").touch()
    assert work_off(made(tmp_path, groups=1)) == [
        Job("train", "c"),
        Job("test", "b", "c"),
        Job("test", "c", "a"),
    ]


def test_the_user_of_the_lost_rank_is_charged_and_the_others_go_on_first(tmp_path: Path) -> None:
    assignments = made(tmp_path, "abc", retries=1)
    assert [assignments.next(0), assignments.next(1)] == [Job("train", "a"), Job("train", "b")]
    assert assignments.lost([0]) == [HERE, HERE]
    assert assignments.lost([0, 1]) == [], "the others are only lost since they were ended"
    begin(assignments, 2)
    assert [assignments.next(0), assignments.next(1)] == [Job("train", "b"), Job("train", "c")]
    assignments.end(0, "")
    assert assignments.next(0) == Job("train", "a")
    assignments.lost([0])
    begin(assignments, 2)
    assert outcome(assignments) == [
        ("train", "b", ""),
        ("train", "a", "its workers were lost 2 times in a row"),
    ]
    assert assignments.next(0) == Job("train", "c")
    assignments.end(0, "")
    assert work_off(assignments) == [Job("test", "b", "c"), Job("test", "c", "b")]


@pytest.mark.parametrize("node", [1, 4])
def test_one_poisonous_user_takes_nobody_along(tmp_path: Path, node: int) -> None:
    """Whether it ends its own workers alone, or those of its whole node of ``node`` groups."""
    users = "abcdefghijklmnop"
    assignments = made(tmp_path, users, retries=2, groups=8)
    for _ in range(100):
        held = {group: assignments.next(group) for group in range(8)}
        if not any(isinstance(job, Job) for job in held.values()):
            break
        poisoned = [group for group, job in held.items() if isinstance(job, Job) and job.alias == "f"]
        if poisoned:
            first = poisoned[0] // node * node
            assignments.lost(range(first, first + node))
            begin(assignments, 8)
            continue
        for group, job in held.items():
            if isinstance(job, Job):
                assignments.end(group, "")
    ended = outcome(assignments)
    assert [entry for entry in ended if entry[2]] == [
        ("train", "f", "its workers were lost 3 times in a row")
    ]
    for step in ("train", "test"):
        assert {alias for found, alias, reason in ended if found == step and not reason} == {*users} - {"f"}


def test_a_loss_after_a_new_state_is_the_first_one_again(tmp_path: Path) -> None:
    assignments = made(tmp_path, "a", retries=1, groups=1)
    for step in (5, 10, 15):
        assert assignments.next(0) == Job("train", "a")
        assignments.kept(0, 0, step)
        assignments.lost([0])
        begin(assignments, 1)
    assert assignments.next(0) == Job("train", "a")
    assignments.kept(0, 0, 15)  # a state that there was before is no sign of getting on
    assignments.lost([0])
    begin(assignments, 1)
    assert outcome(assignments) == [("train", "a", "its workers were lost 2 times in a row")]


def test_a_cluster_that_shrinks_leaves_no_user_behind(tmp_path: Path) -> None:
    assignments = made(tmp_path, "abc", groups=3)
    for group in range(3):
        assignments.next(group)
    begin(assignments, 1)  # Ray Train gave up; there is room for one group now
    jobs = work_off(assignments)
    assert [job.alias for job in jobs if job.step == "train"] == ["a", "b", "c"]
    assert [job.alias for job in jobs if job.step == "test"] == ["a", "b", "c"]
    assert not any(reason for _, _, reason in outcome(assignments))


def test_a_group_waits_while_a_lost_one_may_hand_its_user_back(tmp_path: Path) -> None:
    assignments = made(tmp_path, "a")
    assignments.next(0)
    assert assignments.next(1) == "wait"
    assignments.lost([0])
    begin(assignments, 2)
    assert assignments.next(1) == Job("train", "a")


def test_ranks_are_charged_by_their_groups(tmp_path: Path) -> None:
    assignments = made(tmp_path, "ab", retries=0, groups=0)
    assignments.begin(2)
    for rank in range(4):
        assignments.start(rank // 2, rank % 2, Place("node", rank))
    assert [assignments.next(0), assignments.next(1)] == [Job("train", "a"), Job("train", "b")]
    assert assignments.lost([3]) == [Place("node", rank) for rank in range(4)]
    assignments.begin(2)
    assert outcome(assignments) == [("train", "b", "its workers were lost once")]
    assert assignments.moved() == 1


def test_workers_that_never_come_to_work_end_the_run(tmp_path: Path) -> None:
    assignments = made(tmp_path, retries=2)
    for _ in range(2):
        assignments.lost([0])
        begin(assignments, 2)
    assert not assignments.stopping()
    assignments.lost([1])
    assert assignments.stopping() and assignments.next(1) is None
    fatal = assignments.news().fatal
    assert fatal is not None
    with pytest.raises(ClusterError, match="died 3 times in a row before they took a user"):
        raise from_plain(fatal)


def test_idle_workers_may_be_lost_as_long_as_others_get_on(tmp_path: Path) -> None:
    assignments = made(tmp_path, "a", retries=1, groups=2)
    for step in range(1, 9):
        assert assignments.next(0) == Job("train", "a")
        assert assignments.next(1) == "wait"
        assignments.kept(0, 0, step)
        assignments.lost([1])
        begin(assignments, 2)
    assert not assignments.stopping() and not outcome(assignments)


def test_a_group_that_ends_its_user_and_itself_is_no_idle_loss(tmp_path: Path) -> None:
    assignments = made(tmp_path, "ab", retries=0, groups=1)
    for _ in "ab":
        assignments.next(0)
        assignments.end(0, "out of memory")  # of one rank; its group has to be made anew
        assignments.lost([0])
        begin(assignments, 1)
    assert assignments.next(0) is None and not assignments.stopping()


def test_stopped_or_failed_nothing_is_handed_out(tmp_path: Path) -> None:
    stopped, failed = made(tmp_path), made(tmp_path)
    stopped.stop()
    failed.fail(0, ModelError("no such model", where="x").to_plain())
    failed.fail(1, ModelError("a later one").to_plain())
    for assignments in (stopped, failed):
        assert assignments.stopping() and assignments.next(0) is None
    fatal: Any = failed.news().fatal
    assert "no such model" in str(from_plain(fatal)) and stopped.news().fatal is None


FULL = ClusterError("the base takes 13.00 GiB, and 2.00 are free", where="ray.gpus_per_worker")


def faulty_start(assignments: Assignments, error: MilpRayError = FULL) -> float:
    """A rank of group 1 meets a fault and ends itself; Ray Train starts all again: how long they wait."""
    assignments.fail(1, error.to_plain())
    assignments.lost([1])
    pause = assignments.begin(1)
    for group in range(2):
        assignments.start(group, 0, Place("node", 1, f"10.0.0.{group}"))
    return pause


def test_a_fault_that_stays_ends_the_run_with_its_reason_and_its_node(tmp_path: Path) -> None:
    assignments = made(tmp_path, retries=2)
    begin(assignments, 2)
    assert faulty_start(assignments) == 1
    assert assignments.next(0) == Job("train", "a")  # others take users, and do not get on in that time
    again = ClusterError("the base takes 13.00 GiB, and 1.99 are free", where="ray.gpus_per_worker")
    assert faulty_start(assignments, again) == 2, "the pause grows"
    assert not assignments.stopping()
    faulty_start(assignments)
    events, faults, fatal = assignments.news()
    assert not events and len(faults) == 2 and assignments.stopping() and fatal is not None
    error = from_plain(fatal)
    assert isinstance(error, ClusterError) and error.exit_code == 1
    assert str(error) == "node 10.0.0.1, ray.gpus_per_worker: the base takes 13.00 GiB, and 2.00 are free"


def test_faults_are_told_once_each_and_forgotten_when_users_get_on(tmp_path: Path) -> None:
    assignments = made(tmp_path, "abcdefgh", retries=1)
    told: list[str] = []
    for _ in range(4):
        faulty_start(assignments, StorageError("no space left", where="/runs/.a.123.tmp"))
        told += assignments.news().faults
        assert isinstance(assignments.next(0), Job)
        assignments.end(0, "")
        assert faulty_start(assignments) == 1, "the first one again"
        told += assignments.news().faults
        assert isinstance(assignments.next(0), Job)
        assignments.end(0, "")
    assert not assignments.stopping()
    assert [text.split(": ")[-1] for text in told[:3]] == [
        "no space left",
        FULL.problems[0].fact,
        "no space left",
    ]
    assert told[0].startswith("/runs") and told[2].startswith("node 10.0.0.1, /runs") and len(told) == 3


def test_a_fault_is_charged_to_no_user(tmp_path: Path) -> None:
    """A memory that cannot be written is its storage's fault; others go first then."""
    assignments = made(tmp_path, "abc", retries=1)
    assert [assignments.next(0), assignments.next(1)] == [Job("train", "a"), Job("train", "b")]
    faulty_start(assignments, StorageError("no space left", where="/runs"))
    assert [assignments.next(0), assignments.next(1)] == [Job("train", "a"), Job("train", "c")]
    assignments.end(1, "")
    assert assignments.next(1) == Job("train", "b")
    faulty_start(assignments, StorageError("no space left", where="/runs"))
    assert [event.reason for event in assignments.news().events] == [""], "nobody is given up"


def test_what_died_without_a_word_after_a_fault_ends_with_that_fault(tmp_path: Path) -> None:
    assignments = made(tmp_path, retries=1)
    faulty_start(assignments)
    assignments.lost([0])
    fatal: Any = assignments.news().fatal
    assert FULL.problems[0].fact in str(from_plain(fatal))


def test_a_fault_is_known_though_another_user_gets_on_before_its_worker_has_ended(tmp_path: Path) -> None:
    assignments = made(tmp_path, retries=0)
    begin(assignments, 2)
    assignments.next(0)
    assignments.fail(1, FULL.to_plain())
    assignments.end(0, "")
    assignments.lost([1])
    fatal: Any = assignments.news().fatal
    assert FULL.problems[0].fact in str(from_plain(fatal))


def test_a_run_that_another_driver_took_over_ends_at_once(tmp_path: Path) -> None:
    some = made(tmp_path)
    some.next(0)
    some.fail(0, RunBusyError("another milp-ray took over this run").to_plain())
    fatal = some.news().fatal
    assert fatal is not None and isinstance(from_plain(fatal), RunBusyError) and some.next(0) is None


def test_a_stop_tells_whether_workers_are_up(tmp_path: Path) -> None:
    spec = made(tmp_path).spec()
    waiting, working, ended = Assignments(spec, 0), made(tmp_path), made(tmp_path)
    ended.lost([0])
    assert [each.stop() for each in (waiting, working, ended)] == [False, True, False]
