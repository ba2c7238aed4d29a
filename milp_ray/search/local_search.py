"""Discrete local search of an acquisition over the neighbours of configurations, all climbers in lock-step.

Spaces of gates, counts and ranks have no gradient worth following, and rounding relaxed optima did about as
well as drawing at random. One acquisition call a round serves all climbers, and no placement is evaluated
twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from milp_ray.memory.space import MemoryConfig, MemorySpace

Values = Callable[[Sequence[MemoryConfig]], Sequence[float]]


@dataclass(frozen=True)
class LocalSearch:
    """How much work is put into one proposal.

    Attributes:
        draws: random configurations in the pool of starts.
        climbers: R, the best of the pool that climb.
        rounds: steps of a climber at most.
    """

    draws: int = 256
    climbers: int = 8
    rounds: int = 20

    def best(
        self,
        space: MemorySpace,
        values: Values,
        *,
        seen: Collection[str],
        around: Iterable[MemoryConfig],
        seed: int,
    ) -> MemoryConfig | None:
        """The configuration with the best value among all that were looked at and are not in ``seen``.

        Args:
            space: of the configurations.
            values: the acquisition; called with lists, more is better.
            seen: placement keys that must not be returned (climbers may pass through them).
            around: configurations whose neighbours join the pool of starts, as those of the front.
            seed: of the random part of the pool.

        Returns:
            None if everything looked at was seen before.
        """
        table = _Table(space, values)
        generator = random.Random(seed)
        pool = [space.sample(generator) for _ in range(self.draws)]
        for config in around:
            pool.extend([config, *space.neighbours(config)])
        table.look_at(pool)
        climbing = table.ranked()[: self.climbers]
        for _ in range(self.rounds):
            moves = {key: table.look_at(space.neighbours(table.configs[key])) for key in climbing}
            table.evaluate()
            climbing = list(dict.fromkeys(up for key in climbing if (up := table.best_of(key, moves[key]))))
            if not climbing:
                break
        return next((table.configs[key] for key in table.ranked() if key not in seen), None)


class _Table:
    """Every placement looked at so far, with its value."""

    def __init__(self, space: MemorySpace, values: Values) -> None:
        self._space, self._values = space, values
        self._waiting: dict[str, MemoryConfig] = {}
        self.configs: dict[str, MemoryConfig] = {}
        self.value: dict[str, float] = {}

    def look_at(self, configs: Iterable[MemoryConfig]) -> list[str]:
        """Note configurations for the next evaluation; returns their placement keys."""
        keys = []
        for config in configs:
            key = self._space.placement(config).key
            if not key:
                continue
            keys.append(key)
            if key not in self.configs:
                self.configs[key] = self._waiting[key] = config
        return keys

    def evaluate(self) -> None:
        """Value everything that waits, in one call."""
        if self._waiting:
            found = self._values(list(self._waiting.values()))
            self.value.update(zip(self._waiting, map(float, found), strict=True))
            self._waiting = {}

    def ranked(self) -> list[str]:
        """All keys, best first; ties in the order in which they were met."""
        self.evaluate()
        return sorted(self.value, key=lambda key: -self.value[key])

    def best_of(self, key: str, moves: Sequence[str]) -> str | None:
        """The best of ``moves`` if it is better than ``key``."""
        up = max(moves, key=lambda move: self.value[move], default=key)
        return up if self.value[up] > self.value[key] + 1e-9 else None
