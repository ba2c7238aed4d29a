"""Memories and scores of an earlier choice: what more trials of a run leave behind.

A run that is given more trials may choose another placement for a user. The memory of the earlier
one, its scores, and those of the users that were tested beside it then count as missing, and the
final job makes them again. What did not change is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from milp_ray.layout import ADAPTER_CONFIG
from milp_ray.memory.adapter_notes import NOTE
from milp_ray.memory.architectures import Architecture
from milp_ray.memory.placement import Placement
from milp_ray.storage import reading, remove_file, remove_folder
from milp_ray.study.run_folder import RunFolder


@dataclass(frozen=True)
class Outdated:
    """Aliases of users whose memories, and whose scores, are of an earlier choice."""

    memories: frozenset[str] = frozenset()
    scores: frozenset[str] = frozenset()

    def remove(self, folder: RunFolder) -> None:
        """Delete them; scores first, since they tell what they were measured with.

        Raises:
            StorageError: they could not be deleted; what is left is still outdated.
        """
        for alias in sorted(self.scores):
            remove_file(folder.layout.scores(alias))
        for alias in sorted(self.memories):
            remove_folder(folder.layout.memory(alias), commit_marker=ADAPTER_CONFIG)


def outdated(folder: RunFolder, architecture: Architecture, chosen: Mapping[str, Placement]) -> Outdated:
    """What of a run's memories and scores is of another choice than today's.

    Args:
        folder: of the run.
        architecture: of its base model.
        chosen: placement by alias, of the users whose search is over.

    Raises:
        StorageError: a file cannot be read.
    """
    memories = {
        alias
        for alias, placement in chosen.items()
        if _saved_placement(folder.layout.memory(alias), architecture) not in (None, placement)
    }
    scores = set()
    for alias, placement in chosen.items():
        found = _values(folder.layout.scores(alias))
        if found is not None and (
            alias in memories
            or found.get("other") in memories
            or found.get("placement", placement.key) != placement.key
        ):
            scores.add(alias)
    return Outdated(frozenset(memories), frozenset(scores))


def _saved_placement(memory: Path, architecture: Architecture) -> Placement | None:
    """The placement of a saved adapter; None where there is none, or it does not tell."""
    values = _values(memory / ADAPTER_CONFIG)
    if values is None:
        return None
    note = (_values(memory / NOTE) or {}).get("placement")
    if isinstance(note, str):
        return Placement.from_key(note)
    names, own_ranks = values.get("target_modules"), values.get("rank_pattern", {})
    if not isinstance(names, list) or not isinstance(own_ranks, dict):
        return None
    rank = values.get("r", _default_rank())
    layers = {
        layer: own_ranks.get(module.name, rank)
        for layer in range(architecture.num_layers)
        for module in architecture.modules(layer)
        if module.name in names
    }
    return Placement(tuple(sorted(layers.items()))) if layers else None


def _default_rank() -> int:
    """The rank of an adapter whose configuration says none, since it is PEFT's own."""
    from peft import LoraConfig

    return int(LoraConfig().r)


def _values(path: Path) -> dict[str, object] | None:
    """The object in a JSON file; None where there is no such file, or something else in it."""
    with reading(path):
        try:
            values = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
    return values if isinstance(values, dict) else None
