"""Files and folders are written whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from milp_ray.errors import StorageError
from milp_ray.storage import write_folder, write_json, write_whole


def full(path: Path) -> None:
    path.write_text("half", encoding="utf-8") if path.suffix or not path.is_dir() else (
        path / "a"
    ).write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "t.json"
    write_json(path, {"a": 1})
    with pytest.raises(StorageError, match="No space left") as caught:
        write_whole(path, full)
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
