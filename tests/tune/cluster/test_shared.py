"""A worker that does not see the run folder says so when it starts, whenever its node came."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from milp_ray.config.models import Study
from milp_ray.errors import ClusterError, ModelError
from milp_ray.trial.records import TrialReport, TrialState
from milp_ray.tune.search.trainable import MemoryTrial
from milp_ray.tune.workers.resident import resident_base
from milp_ray.tune.workers.trial_spec import TrialSpec

STUDY = Study.model_validate({"name": "s", "model": {"path": "./nowhere"}, "data": {"path": "d"}})


def test_no_worker_loads_a_base_without_the_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=f"does not see the run folder {tmp_path}") as blind:
        resident_base(STUDY, tmp_path, 1)
    assert "shared file system" in str(blind.value) and blind.value.exit_code == 1
    (tmp_path / "run.json").touch()
    with pytest.raises(ModelError, match="does not exist"):
        resident_base(STUDY, tmp_path, 1)


def test_such_a_worker_says_so_once_and_then_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raising at once tells nobody why; an actor that ends well is kept for the next trial."""

    monkeypatch.setattr(MemoryTrial, "trial_resources", SimpleNamespace(head_cpus=1.0))
    trial = MemoryTrial.__new__(MemoryTrial)
    trial.setup({"user": "u", "trial": 0, "placement": "0:4"}, TrialSpec(STUDY, {}, tmp_path / "run"))
    found = TrialReport.from_result(trial.step())
    assert found.state is TrialState.LOST and isinstance(found.error, ClusterError)
    with pytest.raises(TypeError, match="exit_actor"):  # no actor here that could end
        trial.step()
    trial.cleanup()
    assert not list(tmp_path.iterdir()), "it made the folder up"


def test_a_worker_that_fails_as_any_other_would_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.json").touch()
    monkeypatch.setattr(MemoryTrial, "trial_resources", SimpleNamespace(head_cpus=1.0))
    trial = MemoryTrial.__new__(MemoryTrial)
    trial.setup({"user": "u", "trial": 0, "placement": "0:4"}, TrialSpec(STUDY, {}, tmp_path))
    found = TrialReport.from_result(trial.step())
    assert found.is_over and isinstance(found.error, ModelError)
