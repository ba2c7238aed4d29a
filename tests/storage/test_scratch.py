"""Private folders that go with their process, also when it is killed."""

from __future__ import annotations

import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from milp_ray.storage import Scratch

KILLED = """
import os, signal, sys, tempfile
tempfile.tempdir = sys.argv[1]
from milp_ray.storage import Scratch
(Scratch("kind-").room / "users.jsonl").write_text("text")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("kind-foreign", "other-kind"):
        (tmp_path / name).mkdir()
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)]).returncode < 0
    (left,) = tmp_path.glob("kind-*/room/users.jsonl")
    with Scratch("kind-") as living, Scratch("kind-") as other:
        assert not left.exists() and living.room.is_dir() and other.room.is_dir()
        assert stat.S_IMODE(living.room.parent.stat().st_mode) == 0o700
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kind-foreign", "other-kind"]
