"""Many configurations at once, as NumPy arrays, by the rules of :class:`MemorySpace`.

A local search of the acquisition looks at tens of thousands of configurations per proposal; one by
one that took longer than the models. Rules are those of :mod:`milp_ray.memory.space`, which remains
the definition: tests/memory/test_arrays.py holds the two to each other.

Sizes in comments: N configurations, L layers, E settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_ray.memory.factors import Factor, MemoryConfig
from milp_ray.memory.placement import Placement, deal
from milp_ray.memory.space import MemorySpace

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
        settings: ``N x E``, a column a setting of the space.
        names: of these settings.
    """

    gates: Bools
    nums: Ints
    sizes: Ints
    settings: Floats
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.nums)

    def __getitem__(self, index: slice | Sequence[int] | npt.NDArray[np.generic]) -> Configs:
        """Some of them: a slice, indices, or N booleans."""
        return Configs(
            self.gates[index], self.nums[index], self.sizes[index], self.settings[index], self.names
        )

    def one(self, index: int) -> MemoryConfig:
        """The configuration at ``index``."""
        settings = tuple(zip(self.names, self.settings[index].tolist(), strict=True)) if self.names else ()
        return MemoryConfig(
            tuple(self.gates[index].tolist()), int(self.nums[index]), int(self.sizes[index]), settings
        )

    @classmethod
    def of(cls, configs: Iterable[MemoryConfig], space: MemorySpace) -> Configs:
        """Configurations of a space."""
        rows, names = list(configs), tuple(setting.name for setting in space.settings)
        settings = [[value for _, value in config.settings] for config in rows]
        return cls(
            np.array([config.gates for config in rows], dtype=bool).reshape(len(rows), space.num_layers),
            np.array([config.num_loras for config in rows], dtype=np.int32),
            np.array([config.rank for config in rows], dtype=np.int32),
            np.array(settings, dtype=np.float64).reshape(len(rows), len(names)),
            names,
        )

    @classmethod
    def join(cls, parts: Sequence[Configs]) -> Configs:
        """All of one or more."""
        return cls(
            np.concatenate([part.gates for part in parts]),
            np.concatenate([part.nums for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.settings for part in parts]),
            parts[0].names,
        )


class SpaceArrays:
    """A space's rules on :class:`Configs`.

    A placement is a row of L + E numbers: effective ranks, 0 where a layer carries nothing, then
    settings.
    """

    def __init__(self, space: MemorySpace) -> None:
        self.space = space
        most = max(space.max_loras, space.lora_count.default or 0, space.num_layers)
        self._dealt = _deal_table(space.num_layers, most)
        self._highest, self._total = space.largest_ranks()

    def rows(self, configs: Configs) -> Floats:
        """The placements of ``N`` configurations, ``N x (L + E)``."""
        active = configs.gates.sum(axis=1)  # N
        position = np.maximum(configs.gates.cumsum(axis=1) - 1, 0)  # N x L
        counts = self._dealt[active[:, None], configs.nums[:, None], position] * configs.gates  # N x L
        ranks = counts * configs.sizes[:, None]
        if self.space.max_rank is not None:
            ranks = np.minimum(ranks, self.space.max_rank)
        return np.concatenate([ranks, configs.settings], axis=1, dtype=np.float64)

    def placement(self, row: Sequence[float]) -> Placement:
        """The placement of a row with a layer."""
        L, settings = self.space.num_layers, self.space.settings
        return Placement(
            tuple((layer, int(rank)) for layer, rank in enumerate(row[:L]) if rank),
            tuple((setting.name, value) for setting, value in zip(settings, row[L:], strict=True)),
        )

    def features(self, rows: Floats) -> Floats:
        """``N x d``, see :meth:`MemorySpace.features`."""
        L = self.space.num_layers
        ranks = rows[:, :L]
        layers = np.log1p(ranks) / np.log1p(self._highest)  # N x L
        total = np.log1p(ranks.sum(axis=1, keepdims=True)) / np.log1p(self._total)  # N x 1
        settings = [setting.features(rows[:, [L + at]]) for at, setting in enumerate(self.space.settings)]
        found = np.concatenate([layers, total, *settings], axis=1)  # N x d
        return np.asarray(np.minimum(found, 1.0), dtype=np.float64)

    def sample(self, count: int, seed: int) -> Configs:
        """Random configurations, distributed as :meth:`MemorySpace.sample`."""
        u = np.random.default_rng(seed).random((count, self.space.unit_dim))
        return Configs.of((self.space.from_unit(row) for row in u.tolist()), self.space)

    def neighbours(self, config: MemoryConfig) -> Configs:
        """The steps of :meth:`MemorySpace.neighbours`; placements may repeat here."""
        return Configs.join(self.moves(config))

    def moves(self, config: MemoryConfig) -> tuple[Configs, Configs]:
        """The neighbours in two parts: small steps of each factor; large ones (swaps of layers)."""
        here = Configs.of([config], self.space)
        searched = [factor for factor in self.space.factors if factor.searched]
        near = [self._changed(here, factor, factor.near(config)) for factor in searched]
        far = [self._changed(here, factor, factor.far(config)) for factor in searched]
        return Configs.join([here[:0], *near]), Configs.join([here[:0], *far])

    def _changed(self, here: Configs, factor: Factor, values: npt.NDArray[Any]) -> Configs:
        """A configuration with each of ``N`` values of a factor, as :meth:`MemorySpace.changed`."""
        space = self.space
        configs = here[np.zeros(len(values), dtype=np.intp)]
        if factor is space.layer_gates:
            nums = configs.nums
            if not space.lora_count.searched:
                nums = np.zeros_like(nums) + space.lora_count.fixed(values.sum(axis=1, dtype=np.int32))
            return replace(configs, gates=values, nums=nums)
        if factor is space.lora_count:
            return replace(configs, nums=values)
        if factor is space.lora_rank:
            return replace(configs, sizes=values)
        settings = configs.settings.copy()
        settings[:, configs.names.index(factor.name)] = values
        return replace(configs, settings=settings)


def keys(rows: Floats) -> list[bytes]:
    """A hashable key per row: equal exactly where the placements are."""
    return [row.tobytes() for row in np.ascontiguousarray(rows, dtype=np.float64)]


def key_of(placement: Placement, space: MemorySpace) -> bytes:
    """The key of :func:`keys` of one placement."""
    row = np.zeros(space.num_layers + len(space.settings), dtype=np.float64)
    for layer, rank in placement.ranks:
        row[layer] = rank
    for at, (_, value) in enumerate(placement.settings, start=space.num_layers):
        row[at] = value
    return row.tobytes()


@lru_cache(maxsize=16)  # the same for every plan of a study
def _deal_table(L: int, most: int) -> Ints:
    """How many LoRAs the j-th active layer gets, with k active layers and n LoRAs.

    Returns:
        ``(L + 1) x (most + 1) x L``, by k, n and j.
    """
    table = np.zeros((L + 1, most + 1, L), dtype=np.int32)
    for k in range(1, L + 1):
        for n in range(1, most + 1):
            for position, count in deal(k, n).items():
                table[k, n, position] = count
    return table
