"""What the operating system's refusals mean to a user; waiting for the disk; files that show who lives.

What is written whole or not at all, here or at a URL, is :mod:`milp_ray.storage.files`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from milp_ray.errors import StorageError


@contextmanager
def writing(where: Path) -> Iterator[None]:
    """Turn the operating system's refusals into :class:`StorageError` with a remedy."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, where) from error


@contextmanager
def reading(where: Path) -> Iterator[None]:
    """Turn unreadable or damaged files into :class:`StorageError`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, where) from error
    except ValueError as error:  # json and parquet both derive theirs from it
        raise StorageError(
            f"a file is damaged ({type(error).__name__})",
            where=str(where),
            remedy="restore it from a backup; the event logs alone are enough to rebuild tables and plots",
        ) from error


def storage_error(error: OSError, where: Path) -> StorageError:
    """The :class:`StorageError` that an operating system error stands for."""
    remedies = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some of the quota",
        errno.EACCES: "choose a storage.path that you may write, or change its permissions",
        errno.EPERM: "choose a storage.path that you may write, or change its permissions",
        errno.EROFS: "choose a storage.path on a file system that is not read-only",
        errno.ENOTDIR: "a file stands where a folder is needed: choose another storage.path",
        errno.EEXIST: "a file stands where a folder is needed: choose another storage.path",
    }
    return StorageError(
        f"cannot write or read: {error.strerror or type(error).__name__}",
        where=str(error.filename or where),
        expected="a folder that can be written, with free space",
        remedy=remedies.get(error.errno or 0, "check the storage"),
    )


def write_synced(path: Path, content: bytes) -> None:
    """Write a file of a draft and wait until it is on the disk; for use inside :func:`writing`."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; for use inside :func:`writing`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Held:
    """A file of this process's, and the folder that it lies in, until :meth:`close` or the process's end."""

    def __init__(self, path: Path, file: IO[str], folder: int) -> None:
        self._path, self._file, self._folder = path, file, folder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_there(self) -> bool:
        """Whether the file is still where it was made, and the same one."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Hold it no longer."""
        if not self._file.closed:
            self._file.close()
            os.close(self._folder)


def held(path: Path, content: str = "") -> Held:
    """Make a file that this process holds until it closes it or ends, however it ends.

    A lock rather than a process id says so: containers that share a folder number their processes alike. The
    file is there with its lock or not at all, so that nobody takes it for :func:`abandoned` in between. The
    folder is locked, too, though for nobody of ours: systemd-tmpfiles, which cleans temporary folders, leaves
    one alone that is (tmpfiles.d(5); it does not look at locks of files).

    Raises:
        OSError: the file cannot be made.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.suppress(OSError):  # a file system without such locks: only that cleaner loses by it
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    try:
        return Held(path, _locked(path, content), folder)
    except BaseException:
        os.close(folder)
        raise


def _locked(path: Path, content: str) -> IO[str]:
    draft = path.with_name(f".{path.name}.tmp")
    file = draft.open("w", encoding="ascii")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.write(content)
    file.flush()
    draft.replace(path)
    return file


def abandoned(path: Path) -> bool:
    """Whether a file was :func:`held`, by a process that is gone; False where there is none."""
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False
