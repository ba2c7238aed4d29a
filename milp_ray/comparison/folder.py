"""The folder of a comparison: what it holds, and who may write it.

<storage.path>/<name>/
  comparison.json    the resolved comparison, and the format
  alias.key          the key of all aliases of it, readable by its owner only
  lock  lease/       who may write it
  cells/             the finished cells (:mod:`milp_ray.comparison.cells`)
  answers/           of users, until their cell is finished; responses stay, for judges
  learned/           adapters of methods that train, by what they follow from
  runs/              the searches behind methods, each a run as of `milp-ray search`
  tables/ figures/   for people
  cases/             pages that show texts, where the file asks for them
  predictions/       responses in the form of a data set's own evaluation, where the file asks
  verdict.md         in plain words
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from milp_ray.comparison.cells import FORMAT, Cell, CellStore
from milp_ray.config.comparison import Comparison
from milp_ray.errors import Problem, RunFolderError, StudyError
from milp_ray.ids import child, new_key
from milp_ray.layout import KEY
from milp_ray.storage import is_url, reading, write_json, writing
from milp_ray.storage.folder_lock import folder_lock
from milp_ray.storage.stale_drafts import clean_up_drafts

MARKER = "comparison.json"


class ComparisonFolder:
    """The folder of a comparison, made where there is none.

    Args:
        comparison: whose it is.

    Raises:
        StudyError: the storage is at a URL.
        RunFolderError: something else is there.
        StorageError: it cannot be written.
    """

    def __init__(self, comparison: Comparison) -> None:
        place = comparison.storage.path
        if is_url(place):
            problem = Problem(
                "storage.path",
                "is a URL, and a comparison is kept in a folder",
                "a folder that all nodes share",
                "name one; copy the tables to the URL afterwards",
            )
            raise StudyError("comparison", [problem])
        self.root = child(Path(place).expanduser().resolve(), comparison.name)
        self.comparison = comparison
        self._make()

    @property
    def cells(self) -> CellStore:
        """The finished cells."""
        return CellStore(self.root / "cells")

    @property
    def runs(self) -> Path:
        """Where the searches are."""
        return self.root / "runs"

    @property
    def tables(self) -> Path:
        """Where tables go."""
        return self.root / "tables"

    @property
    def figures(self) -> Path:
        """Where figures go."""
        return self.root / "figures"

    def predictions(self, cell: Cell) -> Path:
        """A cell's responses in the form of the data set's own evaluation."""
        name = f"{cell.method.replace('+', '-')}.json"
        return child(self.root, "predictions", cell.condition.name, name)

    def case_page(self, condition: str) -> Path:
        """The page of a condition that shows texts."""
        return child(self.root, "cases", f"{condition}.md")

    @property
    def verdict(self) -> Path:
        """The page in plain words."""
        return self.root / "verdict.md"

    @property
    def key_file(self) -> Path:
        """The file of the aliases' key: the one that the comparison names, or its own."""
        named = self.comparison.alias_key
        return Path(named).expanduser().resolve() if named else self.root / KEY

    def memory_use(self, model: str) -> Path:
        """The measured memory of growing prompts on a model."""
        return child(self.figures, f"memory-{model}.json")

    def learned(self, condition: str, digest: str) -> Path:
        """Where methods keep what they learned in a condition, by what that follows from."""
        return child(self.root, "learned", f"{condition}.{digest[:12]}")

    def answers(self, cell: Cell, digest: str) -> Path:
        """Where a cell's answers are, one file a user."""
        return child(self.root, "answers", cell.condition.name, cell.file_name(digest))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one process that works on it.

        Raises:
            RunBusyError: another does.
            StorageError: it cannot be written.
        """
        with folder_lock(self.root):
            for folder in (self.root, self.tables, self.figures):
                if folder.is_dir():
                    clean_up_drafts(folder)
            yield

    def _make(self) -> None:
        marker = self.root / MARKER
        if self.root.exists() and not marker.exists() and any(self.root.iterdir()):
            raise RunFolderError(
                "something that is no comparison is in the way",
                where=str(self.root),
                expected="a comparison's folder, or none",
                remedy="choose another name or storage.path",
            )
        with writing(self.root):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not marker.exists():
            if self.comparison.alias_key is None:
                self._write_key()
            write_json(marker, {"format": FORMAT, "comparison": self.comparison.name})
        with reading(marker):
            found = json.loads(marker.read_text(encoding="utf-8"))
        if found.get("format") != FORMAT:
            raise RunFolderError(
                f"the comparison is of format {found.get('format')}",
                where=str(self.root),
                expected=f"format {FORMAT}",
                remedy="compare under another name",
            )

    def _write_key(self) -> None:
        path = self.root / KEY
        with writing(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(new_key())
