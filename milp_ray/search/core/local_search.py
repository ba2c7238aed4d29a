"""Discrete local search of an acquisition over neighbours, all climbers in lock-step.

Spaces of gates, counts and ranks have no gradient worth following, and rounding relaxed optima did
about as well as drawing at random. One acquisition call a round serves all climbers, and no
placement is evaluated twice. Neighbourhoods come in two sizes (variable neighbourhood descent;
docs/references.md: Hansen 2001): flips of a gate and steps of n and r while they lead up, then
swaps of an active with an inactive layer, of which there are ten times as many.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

from milp_ray.memory.arrays import Configs, Floats, SpaceArrays, key_of, keys
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.placement import Placement

Values = Callable[[Floats], Floats]

_BETTER = 1e-9
_WARM = 16  # best of one search that the next one of the same batch starts from


@dataclass(frozen=True)
class LocalSearch:
    """How much work is put into one proposal.

    Attributes:
        draws: random configurations in the pool of starts.
        climbers: R, the best of the pool that climb.
        rounds: steps of a climber at most.
    """

    draws: int = 256
    climbers: int = 6
    rounds: int = 24

    def search(
        self,
        arrays: SpaceArrays,
        values: Values,
        *,
        seen: Collection[str],
        around: Iterable[MemoryConfig],
        seed: int,
        warm: Configs | None = None,
    ) -> SearchResult:
        """Look for the configuration with the best value.

        Args:
            arrays: of the space.
            values: the acquisition: ``k`` placements as rows to ``k`` values, more is better.
            seen: placement keys that must not be returned (climbers may pass through them).
            around: configurations whose neighbours join the pool of starts, as those of the front.
            seed: of the random part of the pool.
            warm: further starts: what an earlier search of the same batch found.
        """
        table = _Table(arrays, values)
        pool = [arrays.sample(self.draws, seed)] if self.draws else []
        pool += [] if warm is None else [warm]
        for config in around:
            pool += [Configs.of([config], arrays.space), *arrays.moves(config)]
        table.look_at(pool)
        climbing = [_Climber(key) for key in table.ranked()[: self.climbers]]
        for _ in range(self.rounds):
            if not climbing:
                break
            climbing = _round(table, climbing)
        ranked = table.ranked()
        hidden = {key_of(Placement.from_key(key), arrays.space) for key in seen}
        best = next((table.configs[key] for key in ranked if key not in hidden), None)
        top = Configs.of((table.configs[key] for key in ranked[:_WARM]), arrays.space)
        return SearchResult(best, top)


@dataclass(frozen=True)
class SearchResult:
    """What a local search came to.

    Attributes:
        best: the best configuration that was not seen before; None if everything looked at was.
        top: the best ones, seen or not.
    """

    best: MemoryConfig | None
    top: Configs


@dataclass
class _Climber:
    """Where a climber stands, and whether it is looking through the large neighbourhood."""

    key: bytes
    wide: bool = False


def _round(table: _Table, climbing: list[_Climber]) -> list[_Climber]:
    """One step of every climber; those that cannot go up in either neighbourhood are done."""
    moves = []
    for climber in climbing:
        near, swaps = table.arrays.moves(table.configs[climber.key])
        moves.append(table.note(swaps if climber.wide else near))
    table.evaluate()
    result: dict[bytes, _Climber] = {}
    for climber, options in zip(climbing, moves, strict=True):
        up = max(options, key=table.value.__getitem__, default=climber.key)
        if table.value[up] > table.value[climber.key] + _BETTER:
            result.setdefault(up, _Climber(up))
        elif not climber.wide:
            result.setdefault(climber.key, _Climber(climber.key, wide=True))
    return list(result.values())


@dataclass
class _Table:
    """Every placement looked at so far, with its value."""

    arrays: SpaceArrays
    values: Values
    configs: dict[bytes, MemoryConfig] = field(default_factory=dict)
    value: dict[bytes, float] = field(default_factory=dict)
    _waiting: dict[bytes, Floats] = field(default_factory=dict)

    def look_at(self, parts: Iterable[Configs]) -> None:
        """Value all of them."""
        for part in parts:
            self.note(part)
        self.evaluate()

    def note(self, configs: Configs) -> list[bytes]:
        """Note configurations for the next evaluation; returns their keys, without no memory."""
        rows = self.arrays.rows(configs)
        result = []
        for index, key in enumerate(keys(rows)):
            if key not in self.configs:
                if not configs.gates[index].any():
                    continue
                self.configs[key] = configs.one(index)
                self._waiting[key] = rows[index]
            result.append(key)
        return result

    def evaluate(self) -> None:
        """Value everything that waits, in one call."""
        if self._waiting:
            found = self.values(np.stack(list(self._waiting.values())))
            self.value.update(zip(self._waiting, found.tolist(), strict=True))
            self._waiting = {}

    def ranked(self) -> list[bytes]:
        """All keys, best first; ties in the order in which they were met."""
        return sorted(self.value, key=lambda key: -self.value[key])
