from __future__ import annotations

import numpy as np

from milp_ray.memory.arrays import Floats, SpaceArrays
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.space import MemorySpace
from milp_ray.search.core.local_search import LocalSearch, Values
from tests.search.problems import measure, small_space


def loss(space: MemorySpace, calls: list[str]) -> Values:
    arrays = SpaceArrays(space)

    def values(rows: Floats) -> Floats:
        placements = [arrays.placement(row) for row in rows.tolist()]
        calls.extend(placement.key for placement in placements)
        return np.array([-measure(placement)["loss"] for placement in placements])

    return values


def test_climbs_to_the_optimum_and_values_nothing_twice() -> None:
    space = small_space()
    best = min(measure(space.placement(config))["loss"] for config in space.every_config())
    calls: list[str] = []
    found = (
        LocalSearch(draws=4, climbers=3, rounds=20)
        .search(
            SpaceArrays(space),
            loss(space, calls),
            seen=set(),
            around=(),
            seed=0,
        )
        .best
    )
    assert found is not None
    assert measure(space.placement(found))["loss"] == best
    assert len(calls) == len(set(calls))


def test_climbs_through_what_was_seen_but_does_not_return_it() -> None:
    space = small_space()
    ranked = sorted(
        {space.placement(config).key: config for config in space.every_config()}.items(),
        key=lambda item: measure(space.placement(item[1]))["loss"],
    )
    seen = {key for key, _ in ranked[:2]}
    found = (
        LocalSearch(draws=8, climbers=4, rounds=20)
        .search(
            SpaceArrays(space),
            loss(space, []),
            seen=seen,
            around=(),
            seed=1,
        )
        .best
    )
    assert found is not None
    assert space.placement(found).key == ranked[2][0]


def test_starts_around_the_front() -> None:
    space = MemorySpace(num_layers=32, max_loras=32, ranks=(8, 16, 32, 64, 96))
    start = MemoryConfig((True,) + (False,) * 31, 1, 8)
    looked: list[str] = []
    LocalSearch(draws=0, climbers=1, rounds=0).search(
        SpaceArrays(space),
        loss(space, looked),
        seen=set(),
        around=[start],
        seed=0,
    )
    assert set(looked) == {space.placement(c).key for c in (start, *space.neighbours(start))}


def test_nothing_left() -> None:
    space = MemorySpace(2, 2, (8,))
    every = {space.placement(config).key for config in space.every_config()}
    search = LocalSearch(draws=16)
    assert search.search(SpaceArrays(space), loss(space, []), seen=every, around=(), seed=0).best is None


def test_deterministic_by_seed() -> None:
    space = MemorySpace(num_layers=12, max_loras=12, ranks=(8, 16, 32))
    search = LocalSearch(draws=8, climbers=1, rounds=1)
    first = [
        search.search(SpaceArrays(space), loss(space, []), seen=set(), around=(), seed=s).best
        for s in (3, 3, 4)
    ]
    assert first[0] == first[1] != first[2]
