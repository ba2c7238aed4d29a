"""What the operating system's refusals mean to a user, and waiting for the disk.

Atomic writes, here or at a URL, are :mod:`milp_ray.storage.files`'s.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
