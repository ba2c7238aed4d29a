"""Workers import what the driver imports, whatever lies in the folder that it was started in."""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path

import pytest

from milp_ray.tune.cluster import import_path
from milp_ray.tune.cluster.import_path import _DriversOwn, forget, runtime_env


def for_workers(*folders: str) -> list[str]:
    own = _DriversOwn()
    own.extend(folders)
    return list(own)


def test_a_folder_that_the_driver_does_not_import_from_is_not_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script, library = "/opt/scripts", sysconfig.get_path("stdlib")
    monkeypatch.setattr(sys, "path", [script, library, "/opt/site-packages"])
    assert for_workers(script, str(tmp_path)) == [script]
    monkeypatch.setattr(
        sys, "path", [script, library, str(tmp_path)]
    )  # behind the library it shadows nothing
    assert for_workers(script, str(tmp_path)) == [script]
    monkeypatch.setattr(sys, "path", ["", library])  # a notebook
    assert for_workers(script, str(tmp_path)) == [str(tmp_path)]


def test_a_jobs_folder_is_forgotten_by_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(**runtime: object) -> None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": runtime}))

    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert runtime_env() is None
    job(env_vars={"A": "1"})
    assert runtime_env() is None
    job(working_dir="gcs://x.zip")
    hook = (runtime_env() or {})["worker_process_setup_hook"]
    assert hook == "milp_ray.tune.cluster.import_path.forget_job_folder"
    job(working_dir="gcs://x.zip", worker_process_setup_hook="mine.hook")  # Ray takes one only
    assert runtime_env() is None

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), "/opt/site-packages", ""])
    import_path.forget_job_folder()
    assert sys.path == ["/opt/site-packages"]


def test_a_checkout_that_milp_ray_comes_from_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = str(Path(import_path.__file__).parents[3])
    monkeypatch.setattr(sys, "path", [checkout, "/opt/site-packages"])
    forget(checkout)
    assert sys.path == [checkout, "/opt/site-packages"]
