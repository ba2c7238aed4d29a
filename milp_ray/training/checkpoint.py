"""Checkpoints of a training, from which an interrupted one resumes and ends with the same adapter.

A checkpoint holds the adapter, each rank's part of the optimizer's state, each rank's random state,
and the steps done. The last two are kept: a file that was truncated or changed is noticed by its
SHA-256, and the checkpoint before it is used. Files are safetensors and JSON, which execute nothing
when they are read. No Ray here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from milp_ray.errors import StorageError
from milp_ray.model.parallel.group import Group
from milp_ray.storage import get_file, make_folder, mirror_of, names_in, put_file, remove_folder, writing

_KEPT = 2
_FORMAT = 2  # of a checkpoint; 2: to its optimizer, an adapter is one vector
_META = "state.json"
_ADAPTER = "adapter.safetensors"


@dataclass(frozen=True)
class TrainingState:
    """A training between two steps, as one rank has it.

    Attributes:
        stage: index of the stage, from 0.
        step: steps of the stage that are done.
        tokens: real (unpadded) tokens trained on so far, in all stages.
        seconds: spent training so far.
        adapter: weights of the adapter, under PEFT's names; the same on every rank.
        optimizer: this rank's part of the optimizer's state.
        random: this rank's random state.
    """

    stage: int
    step: int
    tokens: int
    seconds: float
    adapter: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    random: Mapping[str, Tensor]


@dataclass
class Checkpoints:
    """The checkpoints of one training, on storage that its ranks share. All ranks call each method.

    Args:
        folder: of this training alone.
        group: the ranks.
        replicated: whether every rank holds the whole optimizer state, which is then written once.
        made_with: settings that a checkpoint must have been made with to be resumed from, beside
            the number of ranks.
        every: steps between two checkpoints; 0 for none.
        kept: called with every state that was written.

    Attributes:
        notes: why :meth:`load` passed over checkpoints.
    """

    folder: Path
    group: Group
    replicated: bool
    made_with: Mapping[str, object]
    every: int
    kept: Callable[[TrainingState], object] = lambda state: None
    notes: list[str] = field(default_factory=list)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after this step of a stage."""
        return self.every > 0 and step % self.every == 0

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint, all of it or nothing, and delete those before the last one.

        Raises:
            StorageError: on every rank, if any could not write; earlier checkpoints are intact.
        """
        last = max((self._number(path) for path in self._found()), default=0)
        # Rank 0's: a network file system may show the ranks different files.
        number = self.group.all_gather(last)[0] + 1
        path = self.folder / f"{number:06d}"
        # At a URL nothing is renamed: without its last file a checkpoint is none.
        draft = path if mirror_of(self.folder) else self.folder / f".{number:06d}.tmp"
        rank = self.group.rank
        optimizer = {} if self.replicated and rank else state.optimizer
        files = {f"rank-{rank}.safetensors": _packed(random=state.random, optimizer=optimizer)}
        if rank == 0:
            files[_ADAPTER] = save(dict(state.adapter))
        self._on_all_ranks(lambda: _fresh(draft) if rank == 0 else None)
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        try:
            self._on_all_ranks(lambda: _write(draft, files))
            all_sums = {name: value for part in self.group.all_gather(sums) for name, value in part.items()}
            meta = {
                "format": _FORMAT,
                "stage": state.stage,
                "step": state.step,
                "tokens": state.tokens,
                "seconds": round(state.seconds, 3),
                "ranks": self.group.size,
                "made_with": dict(self.made_with),
                "sha256": all_sums,
            }
            self._on_all_ranks(lambda: self._publish(draft, path, meta) if rank == 0 else None)
        except BaseException:
            if rank == 0:
                _discard(draft)
            raise
        self.kept(state)

    def load(self) -> TrainingState | None:
        """The newest state that every rank can read, or None; :attr:`notes` names the others."""
        self.notes.clear()
        usable: dict[int, TrainingState] = {}
        for path in self._found():
            try:
                usable[self._number(path)] = self._read(path)
            except _Unusable as reason:
                self.notes.append(f"a checkpoint is passed over: {reason}")
        common = set.intersection(*(set(part) for part in self.group.all_gather(list(usable))))
        return usable[max(common)] if common else None

    def clear(self) -> None:
        """Delete all checkpoints: the training is over."""
        if self.group.rank == 0:
            _discard(self.folder)

    def _found(self) -> list[Path]:
        found = sorted(self.folder / name for name in names_in(self.folder) if name.isdecimal())
        if mirror_of(self.folder):
            return [path for path in found if _META in names_in(path)]
        return found

    @staticmethod
    def _number(path: Path) -> int:
        return int(path.name)

    def _publish(self, draft: Path, path: Path, meta: Mapping[str, object]) -> None:
        _write(draft, {_META: json.dumps({"state": meta, "sha256": _digest(meta)}, indent=1).encode()})
        if draft != path:
            draft.rename(path)
        for old in self._found()[:-_KEPT]:
            _discard(old)

    def _read(self, path: Path) -> TrainingState:
        try:
            found = json.loads(get_file(path / _META))
            meta = found["state"]
            if found["sha256"] != _digest(meta):
                raise _Unusable(f"{path.name}/{_META} is damaged")
            if meta.get("format") != _FORMAT:
                raise _Unusable("another version of milp_ray made it")
            if meta["made_with"] != dict(self.made_with):
                raise _Unusable("it was made with other settings")
            if meta["ranks"] != self.group.size:
                raise _Unusable(f"{meta['ranks']} workers made it, and {self.group.size} are at work now")
            own, first = f"rank-{self.group.rank}.safetensors", "rank-0.safetensors"
            names = [_ADAPTER, own, *([first] if self.replicated and own != first else [])]
            contents = {name: get_file(path / name) for name in names}
            for name, content in contents.items():
                if hashlib.sha256(content).hexdigest() != meta["sha256"][name]:
                    raise _Unusable(f"{path.name}/{name} is damaged")
            optimizer = load(contents[first if self.replicated else own])
            return TrainingState(
                meta["stage"],
                meta["step"],
                meta["tokens"],
                meta["seconds"],
                load(contents[_ADAPTER]),
                _unpacked(optimizer, "optimizer"),
                _unpacked(load(contents[own]), "random"),
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise _Unusable(f"{path.name} is damaged ({type(error).__name__})") from None

    def _on_all_ranks(self, work: Callable[[], object]) -> None:
        """Do every rank's writing; the OSError of one is a StorageError on all of them."""

        def written() -> None:
            with writing(self.folder):
                work()

        self.group.on_all_ranks(written)


class _Unusable(Exception):  # noqa: N818  (it names an outcome)
    """A checkpoint that cannot be resumed from."""


def _packed(**parts: Mapping[str, Tensor]) -> bytes:
    named = {f"{kind}/{name}": tensor for kind, part in parts.items() for name, tensor in part.items()}
    return bytes(save(named))


def _unpacked(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}/"): t for name, t in tensors.items() if name.startswith(f"{kind}/")}


def _digest(meta: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _fresh(draft: Path) -> None:
    _discard(draft)
    make_folder(draft)


def _discard(folder: Path) -> None:
    """Delete one checkpoint, or all; one that stays does no harm."""
    with contextlib.suppress(StorageError):
        remove_folder(folder, commit_marker=_META)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        put_file(folder / name, content)
