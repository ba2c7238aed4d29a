"""Files and folders are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from milp_ray.errors import StorageError
from milp_ray.search.core.events import EventLog
from milp_ray.storage import atomic_write, write_folder, write_json, write_synced


def full(path: Path) -> None:
    path.write_text("half", encoding="utf-8") if path.suffix or not path.is_dir() else (
        path / "a"
    ).write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "t.json"
    write_json(path, {"a": 1})
    with pytest.raises(StorageError, match="No space left") as caught:
        atomic_write(path, full)
    assert "free some space" in str(caught.value)
    assert path.read_text() == '{\n "a": 1\n}' and [p.name for p in path.parent.iterdir()] == ["t.json"]


def test_a_full_disk_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    write_folder(path, lambda draft: (draft / "a").write_text("old"))
    with pytest.raises(StorageError):
        write_folder(path, full)
    assert (path / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["adapter"]
    write_folder(path, lambda draft: (draft / "b").write_text("new"))
    assert [p.name for p in path.iterdir()] == ["b"] and [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("file")
    with pytest.raises(StorageError, match="a file stands where a folder is needed"):
        write_json(tmp_path / "x" / "y.json", {})


def test_json_is_strict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_what_is_told_of_is_on_the_disk_by_its_name_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a file that was renamed, or a folder that was made, may else be gone."""
    synced: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink().relative_to(tmp_path)))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    write_json(tmp_path / "scores" / "u-a.json", {})
    assert synced[-1] == "scores" and (tmp_path / "scores" / "u-a.json").exists()
    for _ in range(2):  # made, and replaced
        write_folder(tmp_path / "memories" / "u-a", lambda draft: write_synced(draft / "w", b"1"))
        draft, parent = synced[-2:]
        assert draft.startswith("memories/.u-a.") and parent == "memories"
    EventLog(tmp_path / "events" / "u-a.jsonl")
    assert synced[-2:] == ["events", "."]
