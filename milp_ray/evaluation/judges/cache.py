"""Answers of judges on the disk, so that a second run asks only what is missing.

One JSON object a line: the key of a request and its answer. The key is a hash of judge and content,
so the file holds no text and no id; with a secret (a run's alias key, say) nobody without it can
test a guessed text against a key. Losses are not kept: they are asked again.

Several processes may append to one file: a line is one write. A line that is torn or damaged is
passed over and counted, and costs the asking of one request.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import math
import os
from pathlib import Path

from milp_ray.storage import follow, make_folder, reading, sync_folder, writing


class AnswerCache:
    """Answers by key, in a file or in memory only.

    Example:
        >>> cache = AnswerCache(folder / "answers.jsonl")
        >>> key = cache.key("judge", "prompt")
        >>> cache.add(key, 8.0)
        >>> AnswerCache(folder / "answers.jsonl").get(key)
        8.0

    Args:
        path: of the file, made with its folder when the first answer comes; None: in memory.
        secret: of the keys. The same one finds the same answers again.

    Attributes:
        damaged: lines of the file that were passed over.

    Raises:
        StorageError: the file is there and cannot be read.
    """

    def __init__(self, path: Path | None = None, secret: bytes = b"") -> None:
        self._path, self._secret = path, secret
        self._answers: dict[str, float] = {}
        self.damaged = 0
        if path is not None:
            with reading(path), contextlib.suppress(FileNotFoundError):
                for line in path.read_bytes().split(b"\n"):
                    self._take(line)

    @property
    def size(self) -> int:
        """Answers that are known. It has no length: an empty cache would be false."""
        return len(self._answers)

    def key(self, identity: str, content: str) -> str:
        """The key of a request: 64 hex digits that tell nothing of it."""
        message = json.dumps([identity, content]).encode("ascii")
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()

    def get(self, key: str) -> float | None:
        """The answer, if there is one."""
        return self._answers.get(key)

    def add(self, key: str, answer: float) -> None:
        """Keep an answer: on the disk when this returns.

        Raises:
            StorageError: it cannot be written. The answer is known for now all the same.
        """
        self._answers[key] = answer
        if self._path is None:
            return
        line = json.dumps({"key": key, "answer": answer}, allow_nan=False).encode("ascii") + b"\n"
        with writing(self._path):
            new = not self._path.exists()
            make_folder(self._path.parent)
            handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                if new:
                    follow(self._path)
                    sync_folder(self._path.parent)
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":
                    line = b"\n" + line  # behind a torn line, which stays one of its own
                os.write(handle, line)
                os.fsync(handle)
            finally:
                os.close(handle)

    def _take(self, line: bytes) -> None:
        if not line:
            return
        try:
            record = json.loads(line)
            key, answer = record["key"], float(record["answer"])
            if len(key) != 64 or not math.isfinite(answer):
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError):
            self.damaged += 1
        else:
            self._answers[key] = answer
