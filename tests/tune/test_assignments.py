"""Who gets which user in the final job, when groups end, are lost, and come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from milp_ray.config.models import Study
from milp_ray.errors import ClusterError, StorageError, from_plain
from milp_ray.memory.space import Placement
from milp_ray.tune.assignments import Assignments, Event, FinalSpec, Job
from milp_ray.tune.processes import Place

STUDY = Study.model_validate({"name": "t", "model": {"path": "m"}, "data": {"path": "d"}})
HERE = Place("node", 1)


def made(root: Path, users: str = "abc", retries: int = 2, groups: int = 2) -> Assignments:
    spec = FinalSpec(STUDY, {}, {user: Placement.from_key("0:4") for user in users}, root)
    assignments = Assignments(spec, retries)
    for group in range(groups):
        assignments.start(group, 0, HERE)
    return assignments


def outcome(assignments: Assignments) -> list[tuple[str, str, str]]:
    return [(event.step, event.alias, event.reason) for event in assignments.news()[0]]


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
    assert assignments.news() == ([], None)


def test_a_user_without_a_memory_is_not_tested(tmp_path: Path) -> None:
    assignments = made(tmp_path, "ab", groups=1)
    assignments.next(0)
    assignments.end(0, "loss is not finite", ["a note"])
    assert work_off(assignments) == [Job("train", "b"), Job("test", "b", None)]
    assert assignments.news()[0][0] == Event("train", "a", "loss is not finite", ("a note",))


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


def test_a_lost_group_finds_its_user_at_the_end_until_it_is_given_up(tmp_path: Path) -> None:
    assignments = made(tmp_path, retries=1)
    assert assignments.next(0) == Job("train", "a")
    assignments.start(0, 0, HERE)
    assert assignments.next(0) == Job("train", "b")
    assignments.end(0, "")
    assert [assignments.next(0), assignments.next(1)] == [Job("train", "c"), Job("train", "a")]
    assignments.start(1, 0, HERE)
    assert outcome(assignments) == [("train", "b", ""), ("train", "a", "its workers were lost 2 times")]
    assignments.end(0, "")
    assert work_off(assignments) == [Job("test", "b", "c"), Job("test", "c", "b")]


def test_a_group_waits_while_a_lost_one_may_hand_its_user_back(tmp_path: Path) -> None:
    assignments = made(tmp_path, "a")
    assignments.next(0)
    assert assignments.next(1) == "wait"
    assignments.start(0, 0, HERE)
    assert assignments.next(1) == Job("train", "a")


def test_workers_that_never_come_to_work_end_the_run(tmp_path: Path) -> None:
    assignments = made(tmp_path, retries=2)
    for _ in range(2):
        assignments.start(0, 0, HERE)
    assert not assignments.stopping()
    assignments.start(0, 1, HERE)  # of another rank: it says nothing of the group
    assert not assignments.stopping()
    assignments.start(0, 0, HERE)
    assert assignments.stopping() and assignments.next(1) is None
    fatal = assignments.news()[1]
    assert fatal is not None
    with pytest.raises(ClusterError, match="died 3 times before they took a user"):
        raise from_plain(fatal)


def test_stopped_or_failed_nothing_is_handed_out(tmp_path: Path) -> None:
    stopped, failed = made(tmp_path), made(tmp_path)
    stopped.stop()
    failed.fail(StorageError("full", where="x").to_plain())
    failed.fail(StorageError("a later one").to_plain())
    for assignments in (stopped, failed):
        assert assignments.stopping() and assignments.next(0) is None
    fatal: Any = failed.news()[1]
    assert "full" in str(from_plain(fatal)) and stopped.news()[1] is None


def test_processes_are_handed_out_once(tmp_path: Path) -> None:
    assignments = made(tmp_path, groups=1)
    assignments.start(0, 1, Place("other", 2))
    assert assignments.take_places() == [HERE, Place("other", 2)]
    assert assignments.take_places() == []
