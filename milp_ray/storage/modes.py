"""Who else may read what is written: a run's folder says it, and everything below follows.

Whatever is made in a folder gets no right that the folder itself does not give. So a run in a
folder of mode 0700 is its owner's alone, file by file, and stays so when files are copied out of
it; a folder that is opened later opens what is written from then on. A folder with the set-group-ID
bit is one that a group shares: what is made in it can be read by that group, whatever the process's
umask.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

OWNER, GROUP = 0o700, 0o2750  # modes of a new run's folder
_OTHERS = 0o077
_NO_EXECUTION = 0o666


def make_folder(path: Path) -> None:
    """Make a folder and the missing ones above it, each with the rights of its parent.

    Raises:
        OSError: it cannot be made.
    """
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for folder in reversed(missing):
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            follow(folder)


def follow(path: Path) -> None:
    """Give a new file or folder, and all that is in it, the rights of the folder that it is in.

    Where the file system keeps no modes, or the file is another's, it stays as it is.
    """
    with contextlib.suppress(OSError):
        _follow(path, path.parent.stat().st_mode)


def _follow(path: Path, above: int) -> None:
    found = path.lstat().st_mode
    if stat.S_ISLNK(found):
        return
    folder = stat.S_ISDIR(found)
    given = above & 0o777 & (0o777 if folder else _NO_EXECUTION)
    wanted = stat.S_IMODE(found) & (given | ~_OTHERS)
    if above & stat.S_ISGID:
        wanted |= given & 0o070 | (stat.S_ISGID if folder else 0)
    if wanted != stat.S_IMODE(found):
        path.chmod(wanted)
    if folder:
        for entry in path.iterdir():
            _follow(entry, path.stat().st_mode)


def ownership_fault(folder: Path, what: str) -> str:
    """Why a folder is not safe to trust as this user's own; empty if it is.

    It has to be a folder, no link to one, made by this user (or by root), and nobody else may write
    in it.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return f"{what} is no folder of its own"
    if found.st_uid not in (os.getuid(), 0):
        return f"{what} is another user's"
    if found.st_mode & 0o002 or (found.st_mode & 0o020 and not _is_own_group(found)):
        return f"others may write in {what} (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""


def readers_of(path: Path) -> str:
    """Who beside its owner can read a file, or enter a folder; empty: nobody.

    ``everybody on this machine``, or ``the group …``. Access lists that a file system keeps beside
    the modes are not looked at.

    Raises:
        OSError: it is not there.
    """
    path = path.resolve()
    found = path.stat()
    need = 0o5 if stat.S_ISDIR(found.st_mode) else 0o4
    above = [folder.stat() for folder in path.parents]
    if found.st_mode & need == need and all(folder.st_mode & 0o1 for folder in above):
        return "everybody on this machine"
    if (found.st_mode >> 3) & need == need and all(
        folder.st_mode & 0o1 or (folder.st_gid == found.st_gid and folder.st_mode & 0o10) for folder in above
    ):
        return "" if _is_own_group(found) else f"the group {_group(found.st_gid)}"
    return ""


def _is_own_group(found: os.stat_result) -> bool:
    """Whether the group is the owner's alone: many systems give every user one of the same name."""
    return _group(found.st_gid) == _user(found.st_uid)


def _group(number: int) -> str:
    import grp

    with contextlib.suppress(KeyError):
        return grp.getgrgid(number).gr_name
    return str(number)


def _user(number: int) -> str:
    import pwd

    with contextlib.suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return str(number)
