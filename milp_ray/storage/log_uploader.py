"""Uploads a search's event logs, which grow, within a second and not more often."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_THREADS = 8


class LogUploader:
    """A thread that uploads what was marked. One failure, after all tries, ends it.

    Args:
        upload: writes one file's present content to the store.
        seconds: from one round to the next; Google takes one new version of an object a second.
    """

    def __init__(self, upload: Callable[[Path], None], seconds: float = 1.0) -> None:
        self._upload = upload
        self._seconds = seconds
        self._marked: dict[Path, None] = {}
        self._error: BaseException | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """To be called before a file is changed.

        Raises:
            StorageError, RunFolderError: something could not be uploaded, so nothing more should
                happen.
        """
        if self._error is not None:
            raise self._error

    def mark(self, path: Path) -> None:
        """A file has changed on this machine."""
        with self._changed:
            self._marked[path] = None
            self._changed.notify_all()

    def close(self) -> None:
        """Push what is left, and end.

        Raises:
            StorageError, RunFolderError: see :meth:`check`.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self.check()

    def drop(self) -> None:
        """End, and upload nothing more but what is under way."""
        with self._changed:
            self._marked.clear()
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="upload") as pool:
            while paths := self._next():
                try:
                    list(pool.map(self._upload, paths))
                except BaseException as error:
                    self._error = error
                    return

    def _next(self) -> list[Path]:
        """What to upload now; empty at the end."""
        with self._changed:
            # A round takes in what happens until the next one is due.
            self._changed.wait_for(lambda: self._closing, timeout=self._seconds)
            self._changed.wait_for(lambda: self._closing or bool(self._marked))
            paths = list(self._marked)
            self._marked.clear()
            return paths
