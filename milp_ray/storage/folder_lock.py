"""Who works on a run in a folder: the kernel's lock where there is one, and a lease beside it.

``flock`` ends with its process and says at once who lives, on this machine. Whether other machines
see it depends on the file system: NFS mounted with ``local_lock`` keeps it to one machine, Lustre
without the ``flock`` option has none. So whoever has the lock also takes the lease
(:mod:`milp_ray.storage.lease`) that stands in the folder itself, which asks for no more than that
files of other machines show.
"""

from __future__ import annotations

import errno
import fcntl
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from milp_ray.errors import RunBusyError
from milp_ray.layout import LOCK
from milp_ray.storage.lease import Lease
from milp_ray.storage.local import writing
from milp_ray.storage.objects import Objects

# What a file system without locks answers.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_PAUSES = (0.2, 1.0)  # before further tries: a server of files that is busy, or was begun anew
_held: dict[Path, Lease] = {}
_log = logging.getLogger(__name__)


@contextmanager
def folder_lock(root: Path, *, lease: Callable[[Objects, bool], Lease] | None = None) -> Iterator[Lease]:
    """Be the one process that works on a run in a folder.

    While it is held, :func:`ensure_held` guards whatever this process writes below the folder.

    Args:
        root: the folder. An empty file ``lock`` in it, as earlier versions made it, is used as it
            is.
        lease: makes the lease of the folder's objects, given whether this process has the kernel's
            lock.

    Raises:
        RunBusyError: another process works on it; one of another machine is watched first.
        StorageError: the folder cannot be written.
    """
    with writing(root):
        file = (root / LOCK).open("a+b")
    with file:
        locked = _locked(file, root)
        objects = folder_objects(root)
        with lease(objects, locked) if lease else Lease(objects, kernel_lock=locked) as held:
            key = root.absolute()
            _held[key] = held
            try:
                yield held
            finally:
                del _held[key]


def ensure_held(path: Path) -> None:
    """Make sure that the run which a path is in is still this process's, if it ever took it.

    Raises:
        RunBusyError: another process took it over; nothing may be written any more.
        StorageError: nobody knows, as the folder cannot be read or written.
    """
    for root, lease in list(_held.items()):
        if path.absolute().is_relative_to(root):
            lease.ensure_held()


def confirm_held(root: Path) -> None:
    """As :func:`ensure_held` for a run's folder, but looks now: before anything is deleted.

    Raises:
        RunBusyError, StorageError: see :func:`ensure_held`.
    """
    _held[root.absolute()].confirm()


def folder_objects(root: Path, pauses: tuple[float, ...] = _PAUSES) -> Objects:
    """The files below a folder, as objects."""
    from pyarrow import fs

    return Objects(fs.LocalFileSystem(), str(root.absolute()), str(root), pauses)


def _locked(file: IO[bytes], root: Path) -> bool:
    """Whether this process has the kernel's lock now; False where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunBusyError(
            "another milp-ray is working on this run",
            where=str(root),
            expected="one driver per run folder",
            remedy="wait for it, or stop it with Ctrl-C, then resume",
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            with writing(root):
                raise
        _log.warning(
            "the file system of %s has no locks (%s): a driver is known by its heartbeat alone",
            root,
            error.strerror,
        )
        return False
    return True
