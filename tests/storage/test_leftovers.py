"""What killed processes leave: told from what is in use, and gone or brought back with the next one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from milp_ray.storage import abandoned, held, leftovers, sweep_drafts, write_folder

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
    sweep_drafts(tmp_path)
    assert not path.exists(), "its writer may be between the two"
    monkeypatch.setattr(leftovers, "SWEPT_SECONDS", 0.0)
    sweep_drafts(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["u-a"] and (path / "a").read_text() == "old"


def test_drafts_go_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ["t0007", ".hidden", ".t0007.tmp", ".notes.12.txt", "a.12.tmp"]
    for name in [*kept, ".t0007.12.tmp", ".t0007.12.old", ".scores.json.7.tmp"]:
        (tmp_path / name).write_text("")
    (tmp_path / ".t0008.12.tmp").mkdir()
    (tmp_path / ".t0008.12.tmp" / "adapter_config.json").write_text("")
    sweep_drafts(tmp_path)
    assert len(list(tmp_path.iterdir())) == len(kept) + 4, "younger than a minute"
    monkeypatch.setattr(leftovers, "SWEPT_SECONDS", 0.0)
    sweep_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    sweep_drafts(tmp_path / "absent")


def test_a_file_is_held_as_long_as_its_process_lives(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from milp_ray.storage import held\n"
    code += "file = held(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    path = tmp_path / "owner"
    assert not abandoned(path), "there is none"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    assert not abandoned(path) and [p.name for p in tmp_path.iterdir()] == ["owner"]
    holder.kill()
    holder.communicate()
    assert abandoned(path)
    with held(path, "12"):
        assert not abandoned(path) and path.read_text() == "12"
    assert abandoned(path)
