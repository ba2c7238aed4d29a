"""Holds a run for the one driver that works on it, and begins a session of it.

In a folder that is a lock and a lease (:mod:`milp_ray.storage.folder_lock`), at a URL a lease alone
(:mod:`milp_ray.storage.url_driver`).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from milp_ray.errors import MilpRayError, RunBusyError
from milp_ray.layout import (
    DRAFT_FOLDERS,
    EVENTS,
    EXPERIMENTS,
    FIRST,
    LEASES,
    MEMORIES,
    SCORES,
    TABLES,
    Layout,
)
from milp_ray.storage import (
    FileSet,
    Mirror,
    Session,
    clean_up_drafts,
    driving,
    location_of,
    mirror_of,
    names_in,
    next_session,
    reading,
    write_json,
)
from milp_ray.storage.folder_lock import folder_lock

# What a driver needs of a run at a URL: no weights, only that they are there.
DRIVER_FILES = FileSet(
    FIRST,
    {TABLES: "*", EVENTS: "*", SCORES: "*", EXPERIMENTS: "*", MEMORIES: "*/*.json"},
)


@contextmanager
def run_lock(layout: Layout, key: bytes) -> Iterator[Session]:
    """Hold a run, and remove what a killed driver left half-made.

    Event logs of a run at a URL are uploaded meanwhile. A session of the run begins, so that
    workers of an earlier driver publish nothing more.

    Args:
        layout: of the run.
        key: of the run's aliases, which tells this run from another of its name.

    Raises:
        RunBusyError: another driver holds it, or removed it.
        StorageError: it cannot be read or, at the end, not be written.
    """
    if (mirror := mirror_of(layout.root)) is not None:
        with driving(mirror, DRIVER_FILES):
            try:
                yield _begin_session(layout, key)
            finally:
                _keep_tune_log(mirror, layout)
        return
    _check_same(layout, key)
    with folder_lock(layout.root):
        _clean_up(layout)
        yield _begin_session(layout, key)


def is_held(root: Path) -> bool:
    """Whether a driver holds the run in a folder; of one that was killed here, its claim stays."""
    return any(name.startswith("by-") for name in names_in(root / LEASES))


def _begin_session(layout: Layout, key: bytes) -> Session:
    _check_same(layout, key)
    session = next_session(layout.root)
    write_json(layout.session_file, session.to_plain())
    return session


def _check_same(layout: Layout, key: bytes) -> None:
    """Make sure that what is there is still this run: a key is new in every one."""
    with reading(layout.root):
        file = layout.key_file
        if layout.meta_file.exists() and file.exists() and file.read_bytes() == key:
            return
    location = location_of(layout.root)
    raise RunBusyError(
        "the run was removed meanwhile, or replaced by another of its name",
        where=location,
        expected="the run that this process made or opened",
        remedy=f"search again; where there is a run now, it goes on with: milp-ray resume {location}",
    )


def _clean_up(layout: Layout) -> None:
    """Remove what drivers that were killed, and their workers, left half-made."""
    for scratch in (*layout.tune.glob("search-*"), layout.train):
        shutil.rmtree(scratch, ignore_errors=True)
    with reading(layout.root):
        folders = [layout.root]
        folders += [path for kind in DRAFT_FOLDERS for path in layout.root.glob(kind) if path.is_dir()]
    for folder in folders:
        clean_up_drafts(folder)


def _keep_tune_log(mirror: Mirror, layout: Layout) -> None:
    """Tune's own errors, which a person may be told to look into, go to the URL as well."""
    log = layout.tune_log
    with contextlib.suppress(MilpRayError):
        if log.exists():
            mirror.put(log, log.read_bytes())
