"""Arrays of configurations obey the rules of the space, one by one."""

from __future__ import annotations

import random

import numpy as np
import pytest

from milp_ray.memory.arrays import Configs, SpaceArrays, key_of, keys
from milp_ray.memory.space import MemorySpace

SPACES = [
    MemorySpace(num_layers=7, max_loras=9, ranks=(8, 16, 96), max_rank=100),
    MemorySpace(num_layers=32, max_loras=32, ranks=(8, 16, 32, 64, 96)),
    MemorySpace(num_layers=5, max_loras=5, ranks=(4, 8), factors="layer"),
    MemorySpace(num_layers=5, max_loras=3, ranks=(4, 8), factors="size+layer", default_num=8),
    MemorySpace(num_layers=6, max_loras=6, ranks=(4, 8), factors="num+size", default_layers=(1, 4)),
    MemorySpace(num_layers=1, max_loras=4, ranks=(4,)),
]


@pytest.mark.parametrize("space", SPACES, ids=lambda s: f"{s.num_layers}-{s.searched}")
def test_placements_features_and_keys_are_those_of_the_space(space: MemorySpace) -> None:
    arrays, rng = SpaceArrays(space), random.Random(0)
    drawn = [space.sample(rng) for _ in range(300)]
    rows = arrays.rows(Configs.of(drawn, space))
    placements = [space.placement(config) for config in drawn]
    assert [{layer: rank for layer, rank in enumerate(row) if rank} for row in rows.tolist()] == [
        placement.as_dict() for placement in placements
    ]
    assert np.allclose(arrays.features(rows), [space.features(p) for p in placements], rtol=0, atol=1e-14)
    assert keys(rows) == [key_of(placement, space) for placement in placements]


@pytest.mark.parametrize("space", SPACES, ids=lambda s: f"{s.num_layers}-{s.searched}")
def test_neighbours_are_those_of_the_space(space: MemorySpace) -> None:
    arrays, rng = SpaceArrays(space), random.Random(1)
    for _ in range(30):
        config = space.sample(rng)
        found = arrays.neighbours(config)
        reached = {space.placement(found.one(index)).key for index in range(len(found))}
        known = {space.placement(other).key for other in space.neighbours(config)}
        assert reached - {space.placement(config).key} == known


def test_samples_are_members_and_repeat_by_seed() -> None:
    space = SPACES[0]
    arrays = SpaceArrays(space)
    one, again, other = (arrays.sample(50, seed) for seed in (3, 3, 4))
    for index in range(50):
        space.validate(one.one(index))
    assert (one.gates == again.gates).all()
    assert not (one.gates == other.gates).all()
    assert len(Configs.join([one, other])[10:20]) == 10
