"""Who gets which user in the final job, when groups end, are lost, and come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from milp_ray.config.models import Study
from milp_ray.errors import ClusterError, MilpRayError, ModelError, RunBusyError, StorageError, from_plain
from milp_ray.ids import POPULATION
from milp_ray.memory.placement import Placement
from milp_ray.tune.cluster.processes import WorkerProcess
from milp_ray.tune.final.coordinator import Coordinator, FinalSpec, FinalTask, TaskResult

STUDY = Study.model_validate({"name": "t", "model": {"path": "m"}, "data": {"path": "d"}})
HERE = WorkerProcess("node", 1)


def made(root: Path, users: str = "abc", retries: int = 2, groups: int = 2) -> Coordinator:
    spec = FinalSpec(STUDY, {}, {user: Placement.from_key("0:4") for user in users}, root)
    coordinator = Coordinator(spec, retries)
    begin(coordinator, groups)
    return coordinator


def begin(coordinator: Coordinator, groups: int) -> None:
    """What Ray Train does when workers of one rank each are started, at first or again."""
    coordinator.begin(1)
    for group in range(groups):
        coordinator.start(group, 0, HERE)


def outcome(coordinator: Coordinator) -> list[tuple[str, str, str]]:
    return [(event.step, event.alias, event.reason) for event in coordinator.update().results]


def work_off(coordinator: Coordinator, group: int = 0) -> list[FinalTask]:
    jobs: list[FinalTask] = []
    while isinstance(job := coordinator.next(group), FinalTask):
        jobs.append(job)
        coordinator.end(group, "")
    return jobs


def test_all_trainings_come_before_all_tests(tmp_path: Path) -> None:
    coordinator = made(tmp_path)
    assert coordinator.next(0) == FinalTask("train", "a")
    assert coordinator.next(1) == FinalTask("train", "b")
    coordinator.end(0, "")
    assert coordinator.next(0) == FinalTask("train", "c")
    coordinator.end(0, "")
    assert coordinator.next(0) == "wait"  # b's training is not over
    coordinator.end(1, "")
    tests = work_off(coordinator, 1)
    assert tests == [FinalTask("test", "a", "b"), FinalTask("test", "b", "c"), FinalTask("test", "c", "a")]
    assert coordinator.next(0) is None and coordinator.next(1) is None
    assert [step for step, _, _ in outcome(coordinator)] == ["train"] * 3 + ["test"] * 3
    assert coordinator.update() == ([], [], None)


def sharing(root: Path, users: str = "ab") -> Coordinator:
    """Of a job whose memories start from a shared adapter."""
    placed = Placement.from_key("0:4")
    spec = FinalSpec(STUDY, {}, dict.fromkeys(users, placed), root, shared=placed)
    coordinator = Coordinator(spec, 1)
    begin(coordinator, 2)
    return coordinator


def test_the_shared_adapter_comes_before_all_trainings(tmp_path: Path) -> None:
    coordinator = sharing(tmp_path)
    assert coordinator.next(0) == FinalTask("share", POPULATION)
    assert coordinator.next(1) == "wait"
    coordinator.end(0, "")
    assert [task.step for task in work_off(coordinator)] == ["train"] * 2 + ["test"] * 2
    assert coordinator.next(1) is None
    assert outcome(coordinator)[0] == ("share", POPULATION, "")


def test_without_the_shared_adapter_nobody_is_trained_and_who_has_a_memory_is_tested(tmp_path: Path) -> None:
    memory = tmp_path / "memories" / "b"
    memory.mkdir(parents=True)
    (memory / "adapter_config.json").touch()
    coordinator = sharing(tmp_path)
    assert coordinator.next(0) == FinalTask("share", POPULATION)
    coordinator.end(0, "loss is not finite")
    assert work_off(coordinator) == [FinalTask("test", "b", None)]
    assert outcome(coordinator)[0] == ("share", POPULATION, "loss is not finite")


def test_a_shared_adapter_whose_workers_are_lost_is_tried_again_and_one_that_is_there_is_kept(
    tmp_path: Path,
) -> None:
    coordinator = sharing(tmp_path)
    coordinator.next(0)
    coordinator.lost([0])
    begin(coordinator, 2)
    assert coordinator.next(1) == FinalTask("share", POPULATION)
    memory = tmp_path / "memories" / POPULATION
    memory.mkdir(parents=True)
    (memory / "adapter_config.json").touch()
    assert sharing(tmp_path).next(0) == FinalTask("train", "a")


def test_a_user_without_a_memory_is_not_tested(tmp_path: Path) -> None:
    coordinator = made(tmp_path, "ab", groups=1)
    coordinator.next(0)
    coordinator.end(0, "loss is not finite", ["a note"])
    assert work_off(coordinator) == [FinalTask("train", "b"), FinalTask("test", "b", None)]
    assert coordinator.update().results[0] == TaskResult("train", "a", "loss is not finite", ("a note",))


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    for user in "ab":
        (tmp_path / "memories" / user).mkdir(parents=True)
        (tmp_path / "memories" / user / "adapter_config.json").touch()
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "a.json").touch()
    assert work_off(made(tmp_path, groups=1)) == [
        FinalTask("train", "c"),
        FinalTask("test", "b", "c"),
        FinalTask("test", "c", "a"),
    ]


def test_the_user_of_the_lost_rank_is_charged_and_the_others_go_on_first(tmp_path: Path) -> None:
    coordinator = made(tmp_path, "abc", retries=1)
    assert [coordinator.next(0), coordinator.next(1)] == [FinalTask("train", "a"), FinalTask("train", "b")]
    assert coordinator.lost([0]) == [HERE, HERE]
    assert coordinator.lost([0, 1]) == [], "the others are only lost since they were ended"
    begin(coordinator, 2)
    assert [coordinator.next(0), coordinator.next(1)] == [FinalTask("train", "b"), FinalTask("train", "c")]
    coordinator.end(0, "")
    assert coordinator.next(0) == FinalTask("train", "a")
    coordinator.lost([0])
    begin(coordinator, 2)
    assert outcome(coordinator) == [
        ("train", "b", ""),
        ("train", "a", "its workers were lost 2 times in a row"),
    ]
    assert coordinator.next(0) == FinalTask("train", "c")
    coordinator.end(0, "")
    assert work_off(coordinator) == [FinalTask("test", "b", "c"), FinalTask("test", "c", "b")]


@pytest.mark.parametrize("node", [1, 4])
def test_one_poisonous_user_takes_nobody_along(tmp_path: Path, node: int) -> None:
    """Whether it ends its own workers alone, or those of its whole node of ``node`` groups."""
    users = "abcdefghijklmnop"
    coordinator = made(tmp_path, users, retries=2, groups=8)
    for _ in range(100):
        held = {group: coordinator.next(group) for group in range(8)}
        if not any(isinstance(job, FinalTask) for job in held.values()):
            break
        poisoned = [group for group, job in held.items() if isinstance(job, FinalTask) and job.alias == "f"]
        if poisoned:
            first = poisoned[0] // node * node
            coordinator.lost(range(first, first + node))
            begin(coordinator, 8)
            continue
        for group, job in held.items():
            if isinstance(job, FinalTask):
                coordinator.end(group, "")
    ended = outcome(coordinator)
    assert [entry for entry in ended if entry[2]] == [
        ("train", "f", "its workers were lost 3 times in a row")
    ]
    for step in ("train", "test"):
        assert {alias for found, alias, reason in ended if found == step and not reason} == {*users} - {"f"}


def test_a_loss_after_a_new_state_is_the_first_one_again(tmp_path: Path) -> None:
    coordinator = made(tmp_path, "a", retries=1, groups=1)
    for step in (5, 10, 15):
        assert coordinator.next(0) == FinalTask("train", "a")
        coordinator.kept(0, 0, step)
        coordinator.lost([0])
        begin(coordinator, 1)
    assert coordinator.next(0) == FinalTask("train", "a")
    coordinator.kept(0, 0, 15)  # a state that there was before is no sign of getting on
    coordinator.lost([0])
    begin(coordinator, 1)
    assert outcome(coordinator) == [("train", "a", "its workers were lost 2 times in a row")]


def test_a_cluster_that_shrinks_leaves_no_user_behind(tmp_path: Path) -> None:
    coordinator = made(tmp_path, "abc", groups=3)
    for group in range(3):
        coordinator.next(group)
    begin(coordinator, 1)  # Ray Train gave up; there is room for one group now
    jobs = work_off(coordinator)
    assert [job.alias for job in jobs if job.step == "train"] == ["a", "b", "c"]
    assert [job.alias for job in jobs if job.step == "test"] == ["a", "b", "c"]
    assert not any(reason for _, _, reason in outcome(coordinator))


def test_a_group_waits_while_a_lost_one_may_hand_its_user_back(tmp_path: Path) -> None:
    coordinator = made(tmp_path, "a")
    coordinator.next(0)
    assert coordinator.next(1) == "wait"
    coordinator.lost([0])
    begin(coordinator, 2)
    assert coordinator.next(1) == FinalTask("train", "a")


def test_ranks_are_charged_by_their_groups(tmp_path: Path) -> None:
    coordinator = made(tmp_path, "ab", retries=0, groups=0)
    coordinator.begin(2)
    for rank in range(4):
        coordinator.start(rank // 2, rank % 2, WorkerProcess("node", rank))
    assert [coordinator.next(0), coordinator.next(1)] == [FinalTask("train", "a"), FinalTask("train", "b")]
    assert coordinator.lost([3]) == [WorkerProcess("node", rank) for rank in range(4)]
    coordinator.begin(2)
    assert outcome(coordinator) == [("train", "b", "its workers were lost once")]
    assert coordinator.progress() == 1


def test_workers_that_never_come_to_work_end_the_run(tmp_path: Path) -> None:
    coordinator = made(tmp_path, retries=2)
    for _ in range(2):
        coordinator.lost([0])
        begin(coordinator, 2)
    assert not coordinator.stop_requested()
    coordinator.lost([1])
    assert coordinator.stop_requested() and coordinator.next(1) is None
    fatal = coordinator.update().fatal
    assert fatal is not None
    with pytest.raises(ClusterError, match="died 3 times in a row before they took a user"):
        raise from_plain(fatal)


def test_idle_workers_may_be_lost_as_long_as_others_get_on(tmp_path: Path) -> None:
    coordinator = made(tmp_path, "a", retries=1, groups=2)
    for step in range(1, 9):
        assert coordinator.next(0) == FinalTask("train", "a")
        assert coordinator.next(1) == "wait"
        coordinator.kept(0, 0, step)
        coordinator.lost([1])
        begin(coordinator, 2)
    assert not coordinator.stop_requested() and not outcome(coordinator)


def test_a_group_that_ends_its_user_and_itself_is_no_idle_loss(tmp_path: Path) -> None:
    coordinator = made(tmp_path, "ab", retries=0, groups=1)
    for _ in "ab":
        coordinator.next(0)
        coordinator.end(0, "out of memory")  # of one rank; its group has to be made anew
        coordinator.lost([0])
        begin(coordinator, 1)
    assert coordinator.next(0) is None and not coordinator.stop_requested()


def test_stopped_or_failed_nothing_is_handed_out(tmp_path: Path) -> None:
    stopped, failed = made(tmp_path), made(tmp_path)
    stopped.stop()
    failed.fail(0, ModelError("no such model", where="x").to_plain())
    failed.fail(1, ModelError("a later one").to_plain())
    for coordinator in (stopped, failed):
        assert coordinator.stop_requested() and coordinator.next(0) is None
    fatal: Any = failed.update().fatal
    assert "no such model" in str(from_plain(fatal)) and stopped.update().fatal is None


FULL = ClusterError("the base takes 13.00 GiB, and 2.00 are free", where="ray.gpus_per_worker")


def faulty_start(coordinator: Coordinator, error: MilpRayError = FULL) -> float:
    """A rank of group 1 meets a fault and ends; all start again; the seconds that they wait."""
    coordinator.fail(1, error.to_plain())
    coordinator.lost([1])
    pause = coordinator.begin(1)
    for group in range(2):
        coordinator.start(group, 0, WorkerProcess("node", 1, f"10.0.0.{group}"))
    return pause


def test_a_fault_that_stays_ends_the_run_also_where_the_group_has_a_task_each_time(tmp_path: Path) -> None:
    """Such as a full disk when a memory is written."""
    coordinator = made(tmp_path, "abcdef", retries=2)
    begin(coordinator, 2)
    waits = []
    for _ in range(2):
        assert isinstance(coordinator.next(1), FinalTask)
        waits.append(faulty_start(coordinator))
    assert isinstance(coordinator.next(0), FinalTask)
    coordinator.end(0, "")
    for _ in range(2):
        assert isinstance(coordinator.next(1), FinalTask)
        waits.append(faulty_start(coordinator))
    assert waits == [1, 2, 1, 2] and not coordinator.stop_requested(), "a task got on in between"
    assert isinstance(coordinator.next(1), FinalTask)
    faulty_start(coordinator)
    fatal: Any = coordinator.update().fatal
    assert FULL.problems[0].fact in str(from_plain(fatal))


def test_a_task_that_gets_on_before_its_lost_worker_is_ended_is_not_given_up(tmp_path: Path) -> None:
    coordinator = made(tmp_path, "ab", retries=0, groups=1)
    coordinator.next(0)
    coordinator.lost([0])
    coordinator.kept(0, 0, 5)  # was under way
    begin(coordinator, 1)
    assert not outcome(coordinator)
    assert [task.alias for task in work_off(coordinator) if task.step == "train"] == ["b", "a"]


def test_a_fault_that_stays_ends_the_run_with_its_reason_and_its_node(tmp_path: Path) -> None:
    coordinator = made(tmp_path, retries=2)
    begin(coordinator, 2)
    assert faulty_start(coordinator) == 1
    assert coordinator.next(0) == FinalTask("train", "a")  # others take users, and do not get on in that time
    again = ClusterError("the base takes 13.00 GiB, and 1.99 are free", where="ray.gpus_per_worker")
    assert faulty_start(coordinator, again) == 2, "the pause grows"
    assert not coordinator.stop_requested()
    faulty_start(coordinator)
    events, faults, fatal = coordinator.update()
    assert not events and len(faults) == 2 and coordinator.stop_requested() and fatal is not None
    error = from_plain(fatal)
    assert isinstance(error, ClusterError) and error.exit_code == 1
    assert str(error) == "node 10.0.0.1, ray.gpus_per_worker: the base takes 13.00 GiB, and 2.00 are free"


def test_faults_are_told_once_each_and_forgotten_when_users_get_on(tmp_path: Path) -> None:
    coordinator = made(tmp_path, "abcdefgh", retries=1)
    told: list[str] = []
    for _ in range(4):
        faulty_start(coordinator, StorageError("no space left", where="/runs/.a.123.tmp"))
        told += coordinator.update().faults
        assert isinstance(coordinator.next(0), FinalTask)
        coordinator.end(0, "")
        assert faulty_start(coordinator) == 1, "the first one again"
        told += coordinator.update().faults
        assert isinstance(coordinator.next(0), FinalTask)
        coordinator.end(0, "")
    assert not coordinator.stop_requested()
    assert [text.split(": ")[-1] for text in told[:3]] == [
        "no space left",
        FULL.problems[0].fact,
        "no space left",
    ]
    assert told[0].startswith("/runs") and told[2].startswith("node 10.0.0.1, /runs") and len(told) == 3


def test_a_fault_is_charged_to_no_user(tmp_path: Path) -> None:
    """A memory that cannot be written is its storage's fault; others go first then."""
    coordinator = made(tmp_path, "abc", retries=1)
    assert [coordinator.next(0), coordinator.next(1)] == [FinalTask("train", "a"), FinalTask("train", "b")]
    faulty_start(coordinator, StorageError("no space left", where="/runs"))
    assert [coordinator.next(0), coordinator.next(1)] == [FinalTask("train", "a"), FinalTask("train", "c")]
    coordinator.end(1, "")
    assert coordinator.next(1) == FinalTask("train", "b")
    faulty_start(coordinator, StorageError("no space left", where="/runs"))
    assert [event.reason for event in coordinator.update().results] == [""], "nobody is given up"


def test_what_died_without_a_word_after_a_fault_ends_with_that_fault(tmp_path: Path) -> None:
    coordinator = made(tmp_path, retries=1)
    faulty_start(coordinator)
    coordinator.lost([0])
    fatal: Any = coordinator.update().fatal
    assert FULL.problems[0].fact in str(from_plain(fatal))


def test_a_fault_is_known_though_another_user_gets_on_before_its_worker_has_ended(tmp_path: Path) -> None:
    coordinator = made(tmp_path, retries=0)
    begin(coordinator, 2)
    coordinator.next(0)
    coordinator.fail(1, FULL.to_plain())
    coordinator.end(0, "")
    coordinator.lost([1])
    fatal: Any = coordinator.update().fatal
    assert FULL.problems[0].fact in str(from_plain(fatal))


def test_a_run_that_another_driver_took_over_ends_at_once(tmp_path: Path) -> None:
    some = made(tmp_path)
    some.next(0)
    some.fail(0, RunBusyError("another milp-ray took over this run").to_plain())
    fatal = some.update().fatal
    assert fatal is not None and isinstance(from_plain(fatal), RunBusyError) and some.next(0) is None


def test_a_stop_tells_whether_workers_are_up(tmp_path: Path) -> None:
    spec = made(tmp_path).spec()
    waiting, working, ended = Coordinator(spec, 0), made(tmp_path), made(tmp_path)
    ended.lost([0])
    assert [each.stop() for each in (waiting, working, ended)] == [False, True, False]
