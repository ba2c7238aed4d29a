"""A worker that does not see the run folder says so when it starts, whenever its node came."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from milp_ray.config.models import Study
from milp_ray.errors import ClusterError, ModelError, from_plain
from milp_ray.tune.resident import resident_base
from milp_ray.tune.shared import check_sees
from milp_ray.tune.trainable import MemoryTrial, TrialSpec
from tests.training.ranks import on_ranks

if TYPE_CHECKING:
    from milp_ray.training.parallel.group import Group

STUDY = Study.model_validate({"name": "s", "model": {"path": "./nowhere"}, "data": {"path": "d"}})


def test_no_worker_loads_a_base_without_the_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=f"does not see the run folder {tmp_path}") as blind:
        resident_base(STUDY, tmp_path, 1)
    assert "shared file system" in str(blind.value) and blind.value.exit_code == 1
    (tmp_path / "run.json").touch()
    with pytest.raises(ModelError, match="does not exist"):
        resident_base(STUDY, tmp_path, 1)


def test_a_trial_on_such_a_worker_ends_the_run_rather_than_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Head:
        head_cpus = 1.0

    monkeypatch.setattr(MemoryTrial, "trial_resources", Head())
    trial = MemoryTrial.__new__(MemoryTrial)
    trial.setup({"user": "u", "trial": 0, "placement": "0:4"}, TrialSpec(STUDY, {}, tmp_path / "run"))
    found = trial.step()
    assert found["finished"] and isinstance(from_plain(json.loads(str(found["fatal"]))), ClusterError)
    assert not list(tmp_path.iterdir()), "it made the folder up"


def look(group: Group, folders: list[Path]) -> str:
    with pytest.raises(ClusterError) as error:
        group.together(lambda: check_sees(folders[group.rank]))
    return str(error.value)


@pytest.mark.slow
def test_one_blind_rank_is_told_by_all_of_its_group_rather_than_waited_for(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    seeing, blind = on_ranks(look, [tmp_path, tmp_path / "elsewhere"])
    assert seeing == blind and "elsewhere" in seeing
