"""Answers on the disk, one file a method and user: what an interrupted cell goes on from.

They hold responses, which are texts: the files are readable by their owner only. A judge reads them
there, also long after the comparison.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from milp_ray.errors import RunFolderError
from milp_ray.ids import child
from milp_ray.storage import atomic_write, reading, writing
from milp_ray.tune.comparison.worker import Answer


def write_private(path: Path, text: str) -> None:
    """Write a file with users' texts, readable by its owner only, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """

    def write(draft: Path) -> None:
        draft.touch(0o600)
        draft.write_text(text, encoding="utf-8")

    with writing(path.parent):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic_write(path, write)


class AnswerStore:
    """The answers of a cell.

    Args:
        folder: of the cell.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, alias: str) -> Answer | None:
        """A user's answer, or None.

        Raises:
            RunFolderError: its file is damaged.
            StorageError: it cannot be read.
        """
        path = self._path(alias)
        if not path.exists():
            return None
        with reading(path):
            text = path.read_text(encoding="utf-8")
        try:
            values = json.loads(text)
            return Answer(**values | {"responses": tuple(values["responses"])})
        except (ValueError, TypeError, KeyError):
            raise RunFolderError(
                "an answer's file is damaged",
                where=str(path),
                remedy="remove it: the user is answered again",
            ) from None

    def all(self, aliases: Iterable[str]) -> dict[str, Answer]:
        """The answers of those who have one.

        Raises:
            RunFolderError, StorageError: as :meth:`find`.
        """
        return {alias: answer for alias in aliases if (answer := self.find(alias)) is not None}

    def missing(self, aliases: Iterable[str]) -> list[str]:
        """Who has no answer yet."""
        return [alias for alias in aliases if not self._path(alias).exists()]

    def add(self, answer: Answer) -> None:
        """Keep an answer, whole or not at all.

        Raises:
            StorageError: its file cannot be written.
        """
        text = json.dumps(asdict(answer), allow_nan=False, ensure_ascii=False)
        write_private(self._path(answer.alias), text)

    def _path(self, alias: str) -> Path:
        return child(self._folder, f"{alias}.json")
