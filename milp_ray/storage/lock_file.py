"""A file that a process keeps locked while it lives, so that others can tell whether it does.

Private folders on this machine have one (mirrors, scratch folders, a private Ray's). Who may write
a run is for its lease to say (:mod:`milp_ray.storage.lease`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO, Self


class LockFile:
    """A file that this process locks until :meth:`close` or its own end, whatever ends it.

    A lock rather than a process id says who lives: containers that share a folder number their
    processes alike. The file is there with its lock or not at all, so nobody takes it for stale in
    between. The folder is locked, too, though for nobody of ours: systemd-tmpfiles, which cleans
    temporary folders, leaves a locked folder alone (tmpfiles.d(5); it does not look at locks of
    files).

    Args:
        path: of the file.
        content: of the file, for people.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, content: str = "") -> None:
        self._path = path
        self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.suppress(OSError):  # a file system without such locks: only that cleaner loses by it
            fcntl.flock(self._folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
        try:
            self._file = _locked(path, content)
        except BaseException:
            os.close(self._folder)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_there(self) -> bool:
        """Whether the file is still where it was made, and the same one."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Unlock the file; it stays."""
        if not self._file.closed:
            self._file.close()
            os.close(self._folder)


def is_stale(path: Path) -> bool:
    """Whether a :class:`LockFile` is there whose process is gone; False where there is none."""
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


def _locked(path: Path, content: str) -> IO[str]:
    draft = path.with_name(f".{path.name}.tmp")
    file = draft.open("w", encoding="ascii")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.write(content)
    file.flush()
    draft.replace(path)
    return file
