"""The initial design: scrambled Sobol points as distinct placements, addressable by index.

The points are SciPy's (docs/references.md: Sobol 1967, scrambled after Owen 1998). Two
configurations with one placement train the same memory, so the sequence skips what it has produced
before. The sequence depends on the space and the seed alone: a resumed search goes on where it was.
Small spaces are produced completely, whatever the points leave out being appended in a shuffled
order. Models are *not* involved.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterator
from functools import lru_cache

from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.space import MemorySpace

SMALL = 4096  # configurations; a space of at most so many is enumerated
_LONGEST = 1 << 16  # points looked at in a large space


class Design:
    """A fixed sequence of configurations with distinct, non-empty placements.

    Args:
        space: what to fill.
        seed: of the scrambling, any integer.
    """

    def __init__(self, space: MemorySpace, seed: int) -> None:
        self._space = space
        self._seed = seed
        self._found: list[tuple[str, MemoryConfig]] = []
        self._source = self._distinct()

    def __getitem__(self, index: int) -> MemoryConfig:
        """The configuration at ``index`` ≥ 0.

        Raises:
            IndexError: the sequence is shorter than that.
        """
        if index < 0 or not self._has(index):
            raise IndexError("design index out of range")
        return self._found[index][1]

    def first(self, count: int, seen: Collection[str] = frozenset()) -> list[MemoryConfig]:
        """The first ``count`` configurations not in ``seen`` (placement keys), or fewer."""
        result: list[MemoryConfig] = []
        index = 0
        while len(result) < count and self._has(index):
            key, config = self._found[index]
            if key not in seen:
                result.append(config)
            index += 1
        return result

    def _has(self, index: int) -> bool:
        while len(self._found) <= index:
            item = next(self._source, None)
            if item is None:
                return False
            self._found.append(item)
        return True

    def _distinct(self) -> Iterator[tuple[str, MemoryConfig]]:
        keys = {""}
        for config in self._all():
            key = self._space.placement(config).key
            if key not in keys:
                keys.add(key)
                yield key, config

    def _all(self) -> Iterator[MemoryConfig]:
        small = self._space.size() <= SMALL
        if self._space.unit_dim:
            limit = min(4 * self._space.size() + 64, _LONGEST) if small else _LONGEST
            for point in itertools.islice(_sobol(self._space.unit_dim, self._seed), limit):
                yield self._space.from_unit(point)
        if small:
            rest = list(self._space.every_config())
            random.Random(self._seed).shuffle(rest)
            yield from rest


@lru_cache(maxsize=64)  # all users of a study ask for the same space
def count_placements(space: MemorySpace) -> int | None:
    """How many distinct placements with a memory a space has; None: too many to count."""
    if space.size() > SMALL:
        return None
    return len({space.placement(config).key for config in space.every_config()} - {""})


def _sobol(dimension: int, seed: int) -> Iterator[list[float]]:
    # Half a second of import, not owed by a search that only replays its log.
    from scipy.stats import qmc  # type: ignore[import-untyped]

    engine = qmc.Sobol(dimension, scramble=True, rng=seed % 2**63)
    size = 64
    while True:  # 64, 64, 128, 256, …: powers of two keep the sequence balanced
        yield from engine.random(size).tolist()
        size = engine.num_generated
