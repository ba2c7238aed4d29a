"""A mirror's manifest: what its process has put there, to notice when another program removes it.

A mirror lies where programs clean up: below the system's temporary folder. What is missing or cut
short there must not be taken for what has not happened yet: a log that is gone for a search that
has not begun, say. Only what this process got or wrote is known here; that it is still there is
looked up, never assumed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from milp_ray.errors import StorageError

_TOUCH_SECONDS = 3600.0  # programs that clean up count in days


class Manifest:
    """Names and sizes of what a folder must hold.

    A size counts once the URL has the file, too.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sizes: dict[str, int] = {}
        self._sums: dict[str, str] = {}  # of logs: SHA-256 of what is at the URL

    def add(self, name: str, size: int) -> None:
        """A file is there, whole."""
        self._sizes[name] = size

    def add_log(self, name: str, content: bytes) -> None:
        """A file that grows is there, and at the URL up to here."""
        self._sizes[name] = len(content)
        self._sums[name] = hashlib.sha256(content).hexdigest()

    def drop(self, name: str) -> None:
        """A file or folder is gone, as it is to be."""
        for known in [each for each in list(self._sizes) if each == name or each.startswith(f"{name}/")]:
            del self._sizes[known]
            self._sums.pop(known, None)

    def check_log(self, name: str, content: bytes) -> None:
        """Make sure that a log goes on from what is at the URL, before it takes its place there.

        Raises:
            StorageError: it is shorter, or another one.
        """
        size = self._sizes.get(name, 0)
        if len(content) < size or (
            name in self._sums and hashlib.sha256(content[:size]).hexdigest() != self._sums[name]
        ):
            raise self._damage([name])

    def check(self) -> None:
        """Make sure that everything is still there.

        Raises:
            StorageError: a file is missing or shorter than it was.
        """
        wrong = []
        for name, size in list(self._sizes.items()):
            try:
                if (self._root / name).stat().st_size < size:
                    wrong.append(name)
            except FileNotFoundError:
                wrong.append(name)
        if wrong:
            raise self._damage(wrong)

    def touch(self) -> None:
        """Show programs that remove what nobody has looked at for days that all is in use."""
        now = time.time_ns()
        for folder, _, files in os.walk(self._root.parent):
            for name in files:
                path = Path(folder) / name
                with contextlib.suppress(OSError):  # a draft that is renamed right now
                    os.utime(path, ns=(now, path.stat().st_mtime_ns))

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """:meth:`touch` everything now and then, for the length of a ``with`` block."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(_TOUCH_SECONDS):
                self.touch()

        threading.Thread(target=work, name="touch", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def gone(self) -> StorageError:
        """The error for the whole folder being removed."""
        return self._damage(list(self._sizes) or ["the folder itself"])

    def _damage(self, names: list[str]) -> StorageError:
        those = (
            "1 file of the local copy of the run was"
            if len(names) == 1
            else (f"{len(names)} files of the local copy of the run were")
        )
        return StorageError(
            f"{those} removed or cut short by another program, first of all {min(names)}",
            where=str(self._root.parent),
            expected="a folder in which milp_ray alone removes anything",
            remedy="keep programs that clean temporary files out of it, or set MILP_RAY_CACHE to a folder "
            "that none cleans; then resume: what is finished is at the URL",
        )
