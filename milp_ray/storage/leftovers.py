"""What a writer that was killed left beside its files: drafts, and a folder that it was replacing.

Whole writing (:mod:`milp_ray.storage.files`) makes ``.NAME.PID.tmp`` and, where a folder is replaced, renames
the earlier one to ``.NAME.PID.old`` before the draft takes its place. An ended process removes both.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path

from milp_ray.storage.local import writing

_DRAFT = re.compile(r"\.(?P<name>.+)\.\d+\.(?P<kind>tmp|old)")
# A younger one may be another process's that is at work; no process id tells, as it may be another machine's.
SWEPT_SECONDS = 60.0


def sweep_drafts(folder: Path) -> None:
    """Remove what killed writers left in a folder; a folder that was on its way to be replaced comes back.

    Raises:
        StorageError: the folder cannot be read, or not be written.
    """
    with writing(folder), contextlib.suppress(FileNotFoundError):  # somebody else removes it, too
        for path in list(folder.iterdir()):
            found = _DRAFT.fullmatch(path.name)
            if found is None or is_young(path):
                continue
            if found["kind"] == "old" and not (folder / found["name"]).exists():
                path.rename(folder / found["name"])
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def is_young(path: Path) -> bool:
    """Whether a file or folder was written or renamed within the last minute."""
    return time.time() - path.stat().st_ctime < SWEPT_SECONDS
