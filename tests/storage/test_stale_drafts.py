"""What killed writers leave: told from what is in use, and removed or brought back with the next
one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from milp_ray.storage import clean_up_drafts, stale_drafts, write_folder

KILLED = """
import os, sys, signal
from pathlib import Path
from milp_ray.storage import write_folder
rename = Path.rename
def cut_off(self, target):
    rename(self, target)
    if str(target).endswith(".old"):
        os.kill(os.getpid(), signal.SIGKILL)
Path.rename = cut_off
write_folder(Path(sys.argv[1]), lambda draft: (draft / "b").write_text("new"))
"""


def test_a_folder_whose_writer_was_killed_between_two_renames_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "u-a"
    write_folder(path, lambda draft: (draft / "a").write_text("old"))
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)]).returncode == -9
    assert not path.exists() and len(list(tmp_path.iterdir())) == 2
    clean_up_drafts(tmp_path)
    assert not path.exists(), "its writer may be between the two"
    monkeypatch.setattr(stale_drafts, "STALE_SECONDS", 0.0)
    clean_up_drafts(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["u-a"] and (path / "a").read_text() == "old"


def test_drafts_go_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ["t0007", ".hidden", ".t0007.tmp", ".notes.12.txt", "a.12.tmp"]
    for name in [*kept, ".t0007.12.tmp", ".t0007.12.old", ".scores.json.7.tmp"]:
        (tmp_path / name).write_text("")
    (tmp_path / ".t0008.12.tmp").mkdir()
    (tmp_path / ".t0008.12.tmp" / "adapter_config.json").write_text("")
    clean_up_drafts(tmp_path)
    assert len(list(tmp_path.iterdir())) == len(kept) + 4, "younger than a minute"
    monkeypatch.setattr(stale_drafts, "STALE_SECONDS", 0.0)
    clean_up_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    clean_up_drafts(tmp_path / "absent")
