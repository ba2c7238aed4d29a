"""`check` says who else can read users' texts and memories."""

from __future__ import annotations

from pathlib import Path

import pytest

from milp_ray.study import exposure
from milp_ray.study.exposure import exposures
from milp_ray.study.run_folder import RunFolder
from tests.study.test_run_folder import a_study


def test_what_others_can_read_is_told_with_the_remedy(entered: Path) -> None:
    data = entered / "users.jsonl"
    data.write_text("x")
    data.chmod(0o644)
    study = a_study(entered, path=str(data))
    (told,) = exposures(study)
    assert told == f"everybody on this machine can read the users' data: chmod go= {data}"
    data.chmod(0o600)
    reviews = entered / "reviews.json"
    reviews.write_text("x")
    reviews.chmod(0o644)
    (told,) = exposures(a_study(entered, path=str(data), files={"reviews": str(reviews)}))
    assert told.endswith(f"can read the users' data: chmod go= {reviews}")
    run = RunFolder.create(study, "f")
    assert not exposures(study)
    run.root.chmod(0o755)
    (told,) = exposures(study)
    assert "the run's memories and tables" in told and told.endswith(f"chmod -R go= {run.root}")


def test_what_a_group_was_given_is_no_exposure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = a_study(tmp_path, path="s3://bucket/users.jsonl")
    RunFolder.create(study, "f")
    monkeypatch.setattr(exposure, "readers_of", lambda path: "the group lab")
    assert len(exposures(study)) == 1
    storage = study.storage.model_copy(update={"readable_by": "group"})
    assert not exposures(study.model_copy(update={"storage": storage}))
