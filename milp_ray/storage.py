"""Writing whole or not at all, and what the operating system's refusals mean to a user.

Local and network file systems (NFS) only. Event logs, which grow line by line, have their own writer in
:mod:`milp_ray.search.events`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
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


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file through a temporary sibling, so that readers see the old one or the new one.

    Raises:
        StorageError: nothing of the new file is left behind then.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(draft)
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def write_synced(path: Path, content: bytes) -> None:
    """Write a file of a draft and wait until it is on the disk; for use inside :func:`writing`."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: object) -> None:
    """Write strict JSON (no NaN), whole or not at all."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Write a folder through a temporary sibling; an earlier folder at ``path`` is replaced.

    Raises:
        StorageError: nothing of the new folder is left behind then, and the earlier one is intact.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            write(draft)
            if path.exists():  # a rename cannot replace a filled folder
                old = path.with_name(f".{path.name}.{os.getpid()}.old")
                path.rename(old)
                try:
                    draft.rename(path)
                except BaseException:
                    old.rename(path)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            else:
                draft.rename(path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
