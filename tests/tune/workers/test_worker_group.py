"""Worker groups on a real Ray: trial after trial on one group, and each way to lose a rank."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from milp_ray.config.models import Study
from milp_ray.data.records import UserSplit
from milp_ray.memory.placement import Placement
from milp_ray.trial.records import BASELINE, TrialReport, TrialRequest, TrialState
from tests.processes import listening_addresses

pytestmark = pytest.mark.slow

PLACEMENT = Placement.from_key("0:4,1:8")
Make = Callable[..., Any]


def study_of(folder: Path, **changes: Any) -> Study:
    raw = {
        "name": "group",
        "model": {"path": str(folder), "device": "cpu"},
        "data": {"path": "none"},
        "prompts": {"max_length": 64},
        "memory": {"ranks": (4, 8)},
        "optimizer": {"learning_rate": 1e-2, "batch_size": 3},
        "trial": {"epochs": 2, "max_new_tokens": 4, "eval_batch_size": 2, "slice_seconds": 0.3},
        "ray": {"workers_per_trial": 2, "parallelism": "zero3", "cpus_per_worker": 0.5, "group_timeout": 30},
    }
    for section, values in changes.items():
        raw[section] = {**raw[section], **values}  # type: ignore[dict-item]
    return Study.model_validate(raw)


@pytest.fixture
def make_group(cluster: None, shallow_model: Path, tiny_user: UserSplit, tmp_path: Path) -> Iterator[Make]:
    """Groups of two ranks in a placement group of their own; all are ended afterwards."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    from milp_ray.trial.unit import SearchUnit
    from milp_ray.tune.workers.trial_spec import TrialSpec
    from milp_ray.tune.workers.worker_group import WorkerGroup

    made = []

    def make(**changes: Any) -> Any:
        study = study_of(shallow_model, **changes)
        (tmp_path / "run.json").touch()
        spec = TrialSpec(study, {"u": ray.put(SearchUnit.of_user(tiny_user))}, tmp_path)
        bundles = placement_group([{"CPU": 0.5}] * 2)
        ray.get(bundles.ready())
        group = WorkerGroup(
            ray.put(spec),
            bundles.bundle_specs,
            bundles,
            timeout=study.ray.group_timeout,
            slice_seconds=study.trial.slice_seconds,
        )
        made.append((group, bundles))
        return group

    yield make
    for group, bundles in made:
        group.kill()
        remove_placement_group(bundles)


def finish(group: Any, placement: Placement = PLACEMENT, number: int = 1) -> TrialReport:
    group.begin(TrialRequest("u", number, placement))
    while True:
        report: TrialReport = group.slice()
        if report.is_over:
            return report


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.1)
    return False


def test_trial_after_trial_on_one_group_then_nothing_is_left(
    make_group: Make, shallow_model: Path, tiny_user: UserSplit
) -> None:
    from milp_ray.model.base import load_base
    from milp_ray.trial.lifecycle import Trial

    group = make_group()
    group.start()
    pids = [process.pid for process in group._processes]
    base = load_base(study_of(shallow_model).model)
    for number, key in enumerate(("0:4,1:8", "1:4", "", "0:4,1:8")):
        found = finish(group, Placement.from_key(key), number if key else BASELINE)
        study = study_of(shallow_model)
        with Trial(base, tiny_user, Placement.from_key(key), study, seed=study.seed) as trial:
            alone = trial.run()
        assert alone is not None
        assert found.values["loss"] == pytest.approx(alone.loss, abs=1e-4)
        assert found.values["rouge_l"] == pytest.approx(alone.scores["rouge_l"], abs=1e-6)
        assert found.cost is not None and found.cost.train_tokens == alone.train_tokens and found.cost.node
    assert listening_addresses(os.getpid()) <= {"127.0.0.1", "::1"}, "a door to the network"
    assert [process.pid for process in group._processes] == pids
    group.kill()
    assert gone(pids)


@pytest.mark.parametrize(
    ("killed", "stopped"), [(1, 0), pytest.param(0, 1, marks=pytest.mark.nightly)], ids=["1-0", "0-1"]
)
def test_a_lost_rank_ends_the_group_and_a_new_one_works(make_group: Make, killed: int, stopped: int) -> None:
    from milp_ray.tune.workers.worker_group import GroupFailed

    group = make_group(ray={"group_timeout": 12.0}, trial={"epochs": 2000})
    for how, rank in ((signal.SIGKILL, killed), (signal.SIGSTOP, stopped)):
        group.start()
        pids = [process.pid for process in group._processes]
        group.begin(TrialRequest("u", 1, PLACEMENT))
        assert not group.slice().is_over
        os.kill(pids[rank], how)
        began = time.monotonic()
        with pytest.raises(GroupFailed) as failed:
            while True:
                group.slice()
        assert time.monotonic() - began < 60
        assert not failed.value.final and "worker" in failed.value.reason
        assert not group.alive and gone(pids)
    group.start()
    assert finish(group, Placement(()), BASELINE).state is TrialState.COMPLETE


def test_an_abandoned_trial_leaves_a_group_that_works(make_group: Make) -> None:
    group = make_group(trial={"epochs": 60})
    group.start()
    pids = [process.pid for process in group._processes]
    group.begin(TrialRequest("u", 1, PLACEMENT))
    assert not group.slice().is_over
    group.abandon()
    assert finish(group, Placement(()), BASELINE).state is TrialState.COMPLETE
    assert [process.pid for process in group._processes] == pids


def test_what_keeps_one_rank_from_its_base_is_known_while_another_waits_for_it(
    make_group: Make, tmp_path: Path
) -> None:
    import ray

    from milp_ray.tune.workers.trial_runner import WorkerSetupError

    group = make_group()

    class OneBlind:
        """The trials' spec; whoever asks first sees the run folder."""

        study = study_of(tmp_path, model={"path": "none"})

        @property
        def root(self) -> Path:
            try:
                (tmp_path / "first").mkdir()
            except FileExistsError:
                return tmp_path / "elsewhere"
            return tmp_path

    group._spec = ray.put(OneBlind())
    with pytest.raises(WorkerSetupError, match=r"does not see the run folder .*elsewhere") as error:
        group.start()
    assert error.value.error.exit_code == 1 and error.value.node and not group.alive


def test_a_base_that_no_worker_can_load_is_everybodys_error(make_group: Make, tmp_path: Path) -> None:
    from milp_ray.tune.workers.trial_runner import WorkerSetupError

    group = make_group(model={"path": str(tmp_path / "nowhere")})
    with pytest.raises(WorkerSetupError, match="nowhere") as error:
        group.start()
    assert error.value.error.exit_code == 2 and not group.alive
