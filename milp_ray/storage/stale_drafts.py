"""What a killed writer left beside its files: stale drafts, and a folder that it was replacing.

An atomic write (:mod:`milp_ray.storage.files`) makes ``.NAME.PID.tmp`` and, where it replaces a
folder, renames the earlier one to ``.NAME.PID.old`` before the draft takes its place. A writer that
ends by itself leaves neither.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path

from milp_ray.storage.local import writing

_DRAFT = re.compile(r"\.(?P<name>.+)\.\d+\.(?P<kind>tmp|old)")
# A younger draft may be of a process at work. No process id tells: it may be another machine's.
STALE_SECONDS = 60.0


def clean_up_drafts(folder: Path) -> None:
    """Remove the stale drafts in a folder; a folder that was being replaced comes back.

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
    return time.time() - path.stat().st_ctime < STALE_SECONDS
