"""Private folders below the system's temporary one, which go with the process that made them.

One whose process was killed goes with the next process of the same user that makes one of its kind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

from milp_ray.storage.lock_file import LockFile, is_stale

_OWNER, _ROOM = "owner", "room"


class Scratch:
    """A folder of mode 0700 until :meth:`close`, or the end of a ``with`` block.

    Args:
        kind: begins its name, and those of its kind that are looked for.

    Attributes:
        room: an empty folder in it.

    Raises:
        OSError: the temporary folder cannot be written.
    """

    def __init__(self, kind: str) -> None:
        _clean_up(Path(tempfile.gettempdir()), kind)
        self._folder = Path(tempfile.mkdtemp(prefix=kind))
        self._owner = LockFile(self._folder / _OWNER)
        self.room = self._folder / _ROOM
        self.room.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._owner.close()


def _clean_up(parent: Path, kind: str) -> None:
    for old in parent.glob(f"{kind}*"):
        with contextlib.suppress(OSError):
            if old.lstat().st_uid == os.getuid() and is_stale(old / _OWNER):
                shutil.rmtree(old, ignore_errors=True)
