"""Files with secrets, which only their owner may read: keys of aliases, keys of servers."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class NotPrivateError(Exception):
    """Others than its owner may use the file; ``mode`` says who."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        super().__init__(f"others than its owner may use it (mode {mode:04o})")


def read_private(path: Path, most: int) -> bytes:
    """Up to ``most`` bytes of a file that nobody but its owner may use.

    Raises:
        NotPrivateError: others may.
        OSError, ValueError: it cannot be read, or is no usable path.
    """
    with path.open("rb") as file:
        mode, content = os.fstat(file.fileno()).st_mode, file.read(most)
    if stat.S_IMODE(mode) & 0o077:
        raise NotPrivateError(stat.S_IMODE(mode))
    return content
