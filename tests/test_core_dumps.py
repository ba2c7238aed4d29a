"""A crash of a process that holds users' texts leaves no core dump."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from milp_ray.config.models import DataSettings, ModelSettings, Study
from milp_ray.errors import MilpRayError
from milp_ray.study.users import load_users
from milp_ray.tune.proposals.actors import _Actor
from milp_ray.tune.workers import resident

# The parent of what crashes tells whether the kernel made a dump.
CRASH = """
import os, resource, sys
if os.fork() == 0:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
    if sys.argv[1] == "forbidden":
        from milp_ray.core_dumps import no_core_dumps
        no_core_dumps()
    if os.fork() == 0:
        os.abort()
    os._exit(7 if os.WCOREDUMP(os.wait()[1]) else 8)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def dumped(folder: Path, word: str) -> bool:
    done = subprocess.run(
        [sys.executable, "-c", CRASH, word], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in ("7", "8"), done.stderr
    return done.stdout.strip() == "7"


def test_a_crash_leaves_no_dump_also_in_child_processes(tmp_path: Path) -> None:
    if not dumped(tmp_path, "allowed"):
        pytest.skip("this machine makes no core dumps at all")
    for file in tmp_path.iterdir():
        file.unlink()
    assert not dumped(tmp_path, "forbidden") and not list(tmp_path.iterdir())


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is set instead of this process's own limit."""
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: set_to.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return set_to


def test_drivers_workers_and_proposers_forbid_theirs(
    tmp_path: Path, allowed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(name="s", model=ModelSettings(path="m"), data=DataSettings(path=str(tmp_path / "none")))
    with pytest.raises(MilpRayError):
        load_users(study, os.urandom(32))
    monkeypatch.setattr(resident.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    with pytest.raises(MilpRayError):
        resident.resident_base(study, tmp_path, 1)
    monkeypatch.setattr(os, "setpriority", lambda *_: None)
    _Actor(None)  # type: ignore[arg-type]
    assert allowed == [(1, resource.RLIM_INFINITY)] * 3
