"""Rights follow from the folder above; what others could have planted is not trusted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from milp_ray.storage import follow, make_folder, ownership_fault, readers_of

ROOT_ONLY = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("umask", "above", "folder", "file"),
    [
        (0o022, 0o700, 0o700, 0o600),
        (0o022, 0o750, 0o750, 0o640),
        (0o022, 0o755, 0o755, 0o644),
        (0o077, 0o755, 0o700, 0o600),  # a folder gives no right that the process does not
        (0o077, 0o2750, 0o2750, 0o640),  # but that of a group that shares it
        (0o002, 0o2750, 0o2750, 0o640),
    ],
)
def test_what_is_made_in_a_folder_follows_it(
    tmp_path: Path, umask: int, above: int, folder: int, file: int
) -> None:
    tmp_path.chmod(above)
    before = os.umask(umask)
    try:
        make_folder(tmp_path / "a" / "b")
        (tmp_path / "a/b/deep").mkdir()
        (tmp_path / "a/b/deep/file").write_text("x")
        (tmp_path / "a/b/link").symlink_to("/etc/passwd")
        follow(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert {mode(tmp_path / name) for name in ("a", "a/b", "a/b/deep")} == {folder}
    assert mode(tmp_path / "a/b/deep/file") == file


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")


def test_who_else_can_read(entered: Path) -> None:
    file = entered / "deep" / "file"
    file.parent.mkdir(mode=0o755)
    file.parent.chmod(0o755)
    file.write_text("x")
    for given, who in ((0o644, "everybody on this machine"), (0o600, "")):
        file.chmod(given)
        assert readers_of(file) == who
    file.chmod(0o644)
    file.parent.chmod(0o700)  # nobody comes so far
    assert readers_of(file) == "" and readers_of(file.parent) == ""


@ROOT_ONLY
def test_a_group_that_is_not_the_owners_own_can_read(entered: Path) -> None:
    file = entered / "file"
    file.write_text("x")
    file.chmod(0o640)
    entered.chmod(0o750)
    for number, who in ((os.getgid(), ""), (12345, "the group 12345")):
        os.chown(file, -1, number)
        os.chown(entered, -1, number)
        assert readers_of(file) == who


def test_a_folder_that_others_could_fill_is_not_ours(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir(mode=0o700)
    assert ownership_fault(folder, "it") == ""
    for given in (0o702, 0o777, 0o1777):
        folder.chmod(given)
        assert "others may write" in ownership_fault(folder, "it")
    folder.chmod(0o755)
    (tmp_path / "link").symlink_to(folder)
    assert ownership_fault(folder, "it") == "" and "no folder" in ownership_fault(tmp_path / "link", "it")


@ROOT_ONLY
def test_another_users_folder_is_not_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    assert ownership_fault(tmp_path, "it") == "", "the group is this user's own"
    os.chown(tmp_path, -1, 12345)
    assert "others may write" in ownership_fault(tmp_path, "it")
    tmp_path.chmod(0o750)
    os.chown(tmp_path, 12345, -1)
    assert "another user's" in ownership_fault(tmp_path, "it")
