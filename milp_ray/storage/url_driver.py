"""Driving a run at a URL: one process owns its lease, uploads its event logs and may remove it.

A driver works in its mirror (:mod:`milp_ray.storage.mirror`). It begins with the files as they are
at the URL, and with what a killed driver of this machine had not uploaded. Driving a run in a
folder is :mod:`milp_ray.storage.folder_lock`'s.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from milp_ray.errors import RunFolderError, StorageError
from milp_ray.layout import EVENTS, KEY, LEASES
from milp_ray.storage.file_set import FileSet
from milp_ray.storage.lease import Lease
from milp_ray.storage.local import write_synced, writing
from milp_ray.storage.log_uploader import LogUploader
from milp_ray.storage.mirror import DRIVER, RUN, Mirror

_LEFT = "left"  # in a mirror's folder: logs that this process wrote as an earlier driver


@contextmanager
def driving(mirror: Mirror, files: FileSet, *, lease: Lease | None = None) -> Iterator[None]:
    """Be the one process that works on a run; logs that grow are uploaded meanwhile.

    Args:
        mirror: of the run.
        files: what a driver needs of it.
        lease: to take; None: one as usual.

    Raises:
        RunFolderError: another process works on the run, or took it over.
        StorageError: something could not be read or written.
    """
    with lease or Lease(mirror.objects) as taken:
        # What this process pulled before may be behind, as another driver may have worked since.
        # Its own logs of before may not all have been uploaded.
        left = mirror.folder / _LEFT
        with writing(mirror.folder):
            if (mirror.root / EVENTS).exists():
                (mirror.root / EVENTS).rename(left)
                mirror.manifest.drop(EVENTS)
            (mirror.folder / DRIVER).touch()
        mirror.refresh(files)
        mirror.lease = taken
        with _written_under(taken, mirror):
            mirror.uploader = LogUploader(lambda path: upload_log(mirror, path))
            try:
                _take_logs(mirror, left)
                _take_over(mirror)
                with mirror.manifest.in_use():
                    yield
            except BaseException as error:
                _end(mirror, error)
                raise
            else:
                _end(mirror, None)


def remove_run(mirror: Mirror, last: tuple[str, ...]) -> None:
    """Delete a run at its URL, but for the lease; its driver writes nothing of it any more.

    Args:
        mirror: of the run.
        last: names that go after all others, in this order.

    Raises:
        RunFolderError, StorageError: it is not this process's any more, or could not be deleted.
    """
    if mirror.lease is None:
        raise RuntimeError("only the driver of a run removes it")
    if mirror.uploader is not None:
        mirror.uploader.drop()
        mirror.uploader = None
    found = [each.name for each in mirror.objects.list_below()]
    names = [name for name in found if not name.startswith(f"{LEASES}/")]
    for name in sorted(names, key=lambda name: (name in last and last.index(name) + 1, name)):
        mirror.lease.confirm()
        mirror.objects.delete(name)
    with writing(mirror.root):
        shutil.rmtree(mirror.root)
        mirror.root.mkdir()
    for name in names:
        mirror.manifest.drop(name)


def upload_log(mirror: Mirror, path: Path) -> None:
    """Write a log to the URL as far as its last whole line.

    Raises:
        RunFolderError, StorageError: it does not go on from what is at the URL, or could not be
            written.
    """
    content = _content(path)  # of which a line may be half written at this moment
    content, name = content[: content.rfind(b"\n") + 1], mirror.name(path)
    mirror.manifest.check_log(name, content)
    if content:
        mirror.put(path, content)
        mirror.manifest.add_log(name, content)


@contextmanager
def _written_under(lease: Lease, mirror: Mirror) -> Iterator[None]:
    """Whatever puts or deletes objects meanwhile, in whatever attempt, asks the lease first."""
    plain, mirror.objects = mirror.objects, mirror.objects.guarded(lease)
    try:
        yield
    finally:
        mirror.objects = plain


def _end(mirror: Mirror, error: BaseException | None) -> None:
    """Upload what is left. Where that fails, a later driver of this machine finds it."""
    uploader, mirror.uploader = mirror.uploader, None
    try:
        if uploader is not None:
            uploader.close()
        (mirror.folder / DRIVER).unlink(missing_ok=True)
    except (StorageError, RunFolderError) as failure:
        if error is None:
            raise
        if failure is not error:
            error.add_note(f"and at the end: {failure}")
    finally:
        mirror.lease = None


def _take_over(mirror: Mirror) -> None:
    """Take what killed drivers of this machine had not uploaded."""
    for old in mirror.killed_drivers():
        if _content(old / RUN / KEY) == _content(mirror.root / KEY):  # the same run, not one of its name
            _take_logs(mirror, old / _LEFT)
            _take_logs(mirror, old / RUN / EVENTS)
        shutil.rmtree(old, ignore_errors=True)


def _take_logs(mirror: Mirror, folder: Path) -> None:
    """Take logs that go on where those at the URL end, and delete them in their folder.

    One that is not at the URL at all is not brought back: its user may have been forgotten.
    """
    for log in sorted(folder.glob("*.jsonl")):
        mine = mirror.root / EVENTS / log.name
        here, there = _content(mine), _content(log)
        there = there[: there.rfind(b"\n") + 1]
        if here and len(there) > len(here) and there.startswith(here):
            with writing(mine):
                mine.parent.mkdir(exist_ok=True)
                write_synced(mine, there)
            if mirror.uploader is not None:
                mirror.uploader.mark(mine)
    shutil.rmtree(folder, ignore_errors=True)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
