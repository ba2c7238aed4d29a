"""Many configurations at once, as NumPy arrays: what :class:`MemorySpace` says of one, for thousands.

A local search of the acquisition looks at tens of thousands of configurations per proposal; one by one that
took longer than the models. Rules are those of :mod:`milp_ray.memory.space`, which remains the definition:
tests/memory/test_arrays.py holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from milp_ray.memory.space import MemoryConfig, MemorySpace, Placement

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Configs:
    """N configurations.

    Attributes:
        gates: ``N x L`` booleans, α.
        nums: ``N``, n.
        sizes: ``N``, r.
    """

    gates: Bools
    nums: Ints
    sizes: Ints

    def __len__(self) -> int:
        return len(self.nums)

    def __getitem__(self, index: slice | Sequence[int] | npt.NDArray[np.generic]) -> Configs:
        """Some of them: a slice, indices, or N booleans."""
        return Configs(self.gates[index], self.nums[index], self.sizes[index])

    def one(self, index: int) -> MemoryConfig:
        """The configuration at ``index``."""
        return MemoryConfig(tuple(self.gates[index].tolist()), int(self.nums[index]), int(self.sizes[index]))

    @classmethod
    def of(cls, configs: Iterable[MemoryConfig], num_layers: int) -> Configs:
        """Configurations of a model with ``num_layers`` layers."""
        rows = list(configs)
        return cls(
            np.array([config.gates for config in rows], dtype=bool).reshape(len(rows), num_layers),
            np.array([config.num_loras for config in rows], dtype=np.int32),
            np.array([config.rank for config in rows], dtype=np.int32),
        )

    @classmethod
    def join(cls, parts: Sequence[Configs]) -> Configs:
        """All of one or more."""
        return cls(
            np.concatenate([part.gates for part in parts]),
            np.concatenate([part.nums for part in parts]),
            np.concatenate([part.sizes for part in parts]),
        )


class SpaceArrays:
    """A space's rules on :class:`Configs`."""

    def __init__(self, space: MemorySpace) -> None:
        self.space = space
        most = max(space.max_loras, space.default_num or 0, space.num_layers)
        self._dealt = _deal_table(space.num_layers, most)
        self._highest, self._total = space.largest_ranks()

    def ranks(self, configs: Configs) -> Ints:
        """Effective ranks, ``N x L``; 0 where a layer carries nothing."""
        active = configs.gates.sum(axis=1)
        position = np.maximum(configs.gates.cumsum(axis=1) - 1, 0)
        counts = self._dealt[active[:, None], configs.nums[:, None], position] * configs.gates
        ranks = counts * configs.sizes[:, None]
        cap = self.space.max_rank
        return np.asarray(ranks if cap is None else np.minimum(ranks, cap), dtype=np.int32)

    def features(self, ranks: Ints) -> Floats:
        """``N x (L + 1)``, see :meth:`MemorySpace.features`."""
        layers = np.log1p(ranks) / np.log1p(self._highest)
        total = np.log1p(ranks.sum(axis=1, keepdims=True)) / np.log1p(self._total)
        return np.asarray(np.minimum(np.concatenate([layers, total], axis=1), 1.0), dtype=np.float64)

    def sample(self, count: int, seed: int) -> Configs:
        """Random configurations, distributed as :meth:`MemorySpace.sample`."""
        u = np.random.default_rng(seed).random((count, self.space.unit_dim))
        return Configs.of((self.space.from_unit(row) for row in u.tolist()), self.space.num_layers)

    def neighbours(self, config: MemoryConfig) -> Configs:
        """The steps of :meth:`MemorySpace.neighbours`; placements may repeat here."""
        return Configs.join(self.moves(config))

    def moves(self, config: MemoryConfig) -> tuple[Configs, Configs]:
        """The neighbours in two parts: flips of a gate and steps of n and r; swaps of two layers."""
        space, L = self.space, self.space.num_layers
        steps = Configs.of((MemoryConfig(config.gates, *step) for step in space.steps_of_size(config)), L)
        if "layer" not in space.searched:
            return steps, steps[:0]
        base = np.array(config.gates, dtype=bool)
        flips = base ^ np.eye(L, dtype=bool)
        on, off = np.flatnonzero(base), np.flatnonzero(~base)
        swaps = np.repeat(base[None], len(on) * len(off), axis=0)
        rows = np.arange(len(swaps))
        swaps[rows, np.repeat(on, len(off))] = False
        swaps[rows, np.tile(off, len(on))] = True
        near = self._with(flips[flips.any(axis=1)], config)
        return Configs.join([near, steps]), self._with(swaps, config)

    def _with(self, gates: Bools, config: MemoryConfig) -> Configs:
        count = len(gates)
        nums = np.full(count, config.num_loras, dtype=np.int32)
        if "num" not in self.space.searched and self.space.default_num is None:
            nums = gates.sum(axis=1).astype(np.int32)
        return Configs(gates, nums, np.full(count, config.rank, dtype=np.int32))


def keys(ranks: Ints) -> list[bytes]:
    """A hashable key per row of effective ranks: equal exactly where the placements are."""
    return [row.tobytes() for row in np.ascontiguousarray(ranks, dtype=np.int32)]


def key_of(placement: Placement, num_layers: int) -> bytes:
    """The key of :func:`keys` of one placement."""
    row = np.zeros(num_layers, dtype=np.int32)
    for layer, rank in placement.ranks:
        row[layer] = rank
    return row.tobytes()


@lru_cache(maxsize=16)  # the same for every plan of a study
def _deal_table(L: int, most: int) -> Ints:
    """``(L + 1) x (most + 1) x L``: with k active layers and n LoRAs, how many the j-th active layer gets."""
    table = np.zeros((L + 1, most + 1, L), dtype=np.int32)
    for k in range(1, L + 1):
        for n in range(1, most + 1):
            for position, count in MemorySpace.deal(k, n).items():
                table[k, n, position] = count
    return table
