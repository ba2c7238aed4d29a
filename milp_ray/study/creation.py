"""Creates a run, all of its first files or nothing, and deletes one in which nothing was searched.

What the first files hold is :mod:`milp_ray.study.run_folder`'s. Nothing but :func:`delete_run`
deletes a run, and its caller makes sure that the run is this process's to delete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from milp_ray.layout import DELETED_LAST, EVENTS, FIRST, KEY, LOCK, OF_UNUSED
from milp_ray.storage import (
    GROUP,
    Mirror,
    follow,
    is_url,
    mirror_at,
    mirror_of,
    reading,
    remove_run,
    sync_folder,
    writing,
)
from milp_ray.storage.folder_lock import confirm_held
from milp_ray.storage.lease import Lease
from milp_ray.storage.stale_drafts import is_young
from milp_ray.study.location import refuse_existing
from milp_ray.study.run_lock import DRIVER_FILES

_DRAFT, _DELETED = ".draft", ".removed"


def create_run(location: str, first: Mapping[str, bytes], *, group_reads: bool) -> Path:
    """Write a run's first files; a killed creation leaves nothing that counts as a run.

    Args:
        location: path or URL, where there is nothing yet.
        first: content of every file of :data:`milp_ray.layout.FIRST`, by name.
        group_reads: the folder's group may read the run, except the key. At a URL the bucket
            decides.

    Returns:
        The run's root: its folder or, at a URL, the root of this process's mirror.

    Raises:
        RunFolderError: something is there.
        StorageError: the location cannot be written.
    """
    if is_url(location):
        return _create_at(mirror_at(location), first)
    return _create_in(Path(location), first, group_reads)


def is_unused(root: Path) -> bool:
    """Whether a run holds nothing but what creation and a search without any trial write.

    At a URL what is there counts, and what this process has still to upload.

    Raises:
        StorageError: it cannot be read.
    """
    with reading(root):
        logs = {f"here/{log.name}": log.read_bytes() for log in (root / EVENTS).glob("*.jsonl")}
        if (mirror := mirror_of(root)) is None:
            names = {path.name for path in root.iterdir()}
        else:
            found = [each.name for each in mirror.objects.list_below()]
            names = {name.partition("/")[0] for name in found}
            logs |= {name: mirror.objects.get(name) for name in found if name.startswith(f"{EVENTS}/")}
    return names <= OF_UNUSED and all(log.count(b"\n") <= 1 for log in logs.values())


def delete_run(root: Path, session: str) -> None:
    """Delete a whole run, which this process drives.

    Args:
        root: of the run.
        session: id of the driver's session, so that no two deletions use one name.

    Raises:
        RunBusyError: the run is not this process's any more.
        StorageError: it could not be deleted.
    """
    if (mirror := mirror_of(root)) is not None:
        remove_run(mirror, last=DELETED_LAST)
        return
    confirm_held(root)
    with writing(root):
        # At once, so that nobody finds a part of it; what a crash leaves goes with the next of the
        # name.
        gone = root.with_name(f".{root.name}-{session}{_DELETED}")
        root.rename(gone)
        shutil.rmtree(gone)


def _create_in(root: Path, first: Mapping[str, bytes], group_reads: bool) -> Path:
    """Fill a draft of the folder and rename it."""
    with writing(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        _clean_up(root)
        draft = Path(tempfile.mkdtemp(prefix=f".{root.name}-", suffix=_DRAFT, dir=root.parent))
        try:
            _write_first(draft, first)
            (draft / LOCK).touch()
            if group_reads:
                draft.chmod(GROUP)  # else as it is made: for its owner alone
            for file in draft.iterdir():
                if file.name != KEY:
                    follow(file)
            sync_folder(draft)
            draft.rename(root)  # fails if somebody made a filled folder there meanwhile
            sync_folder(root.parent)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                refuse_existing(str(root))
            raise
    return root


def _create_at(mirror: Mirror, first: Mapping[str, bytes]) -> Path:
    """Put the first files at a URL, ``run.json`` last, so that it is there whole or not at all."""
    mirror.refresh(DRIVER_FILES)  # of an earlier run of the name, which was removed elsewhere
    with Lease(mirror.objects) as lease:
        refuse_existing(mirror.url)
        for name in FIRST:
            mirror.objects.guarded(lease).put(name, first[name])
    with writing(mirror.root):
        _write_first(mirror.root, first)
    return mirror.root


def _write_first(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        mode = 0o600 if name == KEY else 0o644
        with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _clean_up(root: Path) -> None:
    """Remove what killed creations and deletions of runs of this name left.

    That is drafts that hold nothing but first files, and all that was deleted.
    """
    for gone in root.parent.glob(f".{root.name}-*{_DELETED}"):
        shutil.rmtree(gone, ignore_errors=True)
    for draft in root.parent.glob(f".{root.name}-*{_DRAFT}"):
        with contextlib.suppress(OSError):
            if not is_young(draft) and {path.name for path in draft.iterdir()} <= {*FIRST, LOCK}:
                shutil.rmtree(draft)
