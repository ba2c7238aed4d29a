"""Cells of a comparison: one method on one data set, base model and seed; each a file once done.

A cell's file is named by a digest of everything that its result follows from. So a cell is
recomputed exactly if that has changed, and what an interrupted comparison has finished is kept. How
a cell is computed is :mod:`milp_ray.comparison.run`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from milp_ray.config.comparison import Comparison
from milp_ray.errors import RunFolderError
from milp_ray.ids import child
from milp_ray.storage import reading, write_json

FORMAT = 1
_DIGEST = 12  # hex digits in a file's name; the file has the whole digest


@dataclass(frozen=True, slots=True, order=True)
class Condition:
    """What the cells of all methods have in common: a data set, a base model, a seed."""

    dataset: str
    model: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its study, and of its folders."""
        return f"{self.dataset}-{self.model}-s{self.seed}"


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One method in one condition."""

    condition: Condition
    method: str

    def __str__(self) -> str:
        return f"{self.condition.name} {self.method}"

    def file_name(self, digest: str) -> str:
        """A name of its files, without an ending; ``+`` stands in no name of a file."""
        return f"{self.method.replace('+', '-')}.{digest[:_DIGEST]}"


@dataclass(frozen=True, slots=True)
class UserResult:
    """What a method reached for one user, on the user's test samples.

    Attributes:
        samples: number of test samples.
        scores: by name (:data:`milp_ray.evaluation.metrics.SCORES`).
        control: the same of the same samples, answered with another user's memory; empty where a
            method has nothing of a user's own.
        prompt_tokens: mean length of the prompts.
    """

    samples: int
    scores: Mapping[str, float | None]
    control: Mapping[str, float | None] = field(default_factory=dict)
    prompt_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class CellCost:
    """What a cell took, summed over users.

    Attributes:
        train_seconds: of whatever was trained, shared parts included.
        train_tokens: real tokens that were trained on, every epoch counted.
        trainable_params: mean over users.
        adapter_bytes: mean over users, of what is stored for one.
        answer_seconds: this cell's share, by tokens, of the batches that it was answered in.
        trials: that were trained to choose a placement.
    """

    train_seconds: float = 0.0
    train_tokens: int = 0
    trainable_params: float = 0.0
    adapter_bytes: float = 0.0
    answer_seconds: float = 0.0
    trials: int = 0


@dataclass(frozen=True, slots=True)
class CellRecord:
    """A finished cell.

    Attributes:
        cell: which.
        digest: of what the result follows from.
        users: results by alias.
        cost: of the cell.
        note: data, steps and learning rate of what was trained, in words.
        failed: alias -> reason, of users without a result.
        made_with: versions of packages, and the commit of milp_ray where it is a checkout.
    """

    cell: Cell
    digest: str
    users: Mapping[str, UserResult]
    cost: CellCost
    note: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)
    made_with: Mapping[str, str] = field(default_factory=dict)


def conditions_of(comparison: Comparison) -> Iterator[Condition]:
    """Every combination of a data set, a model and a seed, in the file's order."""
    for dataset in comparison.datasets:
        for model in comparison.models:
            for seed in comparison.seeds:
                yield Condition(dataset, model, seed)


def digest_of(parts: Mapping[str, object]) -> str:
    """SHA-256 (hex) of plain values, whatever the order of their keys."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class CellStore:
    """The finished cells of a comparison.

    Args:
        folder: where their files are.

    >>> from tempfile import mkdtemp
    >>> store = CellStore(Path(mkdtemp()))
    >>> cell, digest = Cell(Condition("forum", "tiny", 0), "none"), digest_of({"seed": 0})
    >>> store.find(cell, digest) is None
    True
    >>> store.add(CellRecord(cell, digest, {"u-1": UserResult(3, {"loss": 2.5})}, CellCost()))
    >>> store.find(cell, digest).users["u-1"].scores
    {'loss': 2.5}
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, cell: Cell, digest: str) -> CellRecord | None:
        """The finished cell, or None.

        Raises:
            RunFolderError: its file is of a later version, or was changed.
            StorageError: it cannot be read.
        """
        path = self._path(cell, digest)
        if not path.exists():
            return None
        with reading(path):
            text = path.read_text(encoding="utf-8")
        try:
            found = json.loads(text)
            if found["format"] == FORMAT and found["digest"] == digest:
                return CellRecord(
                    cell,
                    digest,
                    {alias: UserResult(**user) for alias, user in found["users"].items()},
                    CellCost(**found["cost"]),
                    found["note"],
                    found["failed"],
                    found["made_with"],
                )
        except (ValueError, KeyError, TypeError):
            pass
        raise RunFolderError(
            "is no finished cell of this version",
            where=str(path),
            expected=f"format {FORMAT}, written by milp-ray compare",
            remedy="remove the file: the cell is then computed anew",
        )

    def add(self, record: CellRecord) -> None:
        """Keep a finished cell, whole or not at all.

        Raises:
            StorageError: its file cannot be written.
        """
        path = self._path(record.cell, record.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT} | asdict(record))

    def _path(self, cell: Cell, digest: str) -> Path:
        return child(self._folder, cell.condition.name, f"{cell.file_name(digest)}.json")
