from __future__ import annotations

import statistics

import pytest

from milp_ray.memory.space import MemorySpace
from milp_ray.search.core.design import Design, count_placements
from milp_ray.search.surrogates import Sampler, make_surrogate

BIG = MemorySpace(num_layers=32, max_loras=32, ranks=(8, 16, 32, 64, 96))


def keys(space: MemorySpace, configs: list) -> list[str]:  # type: ignore[type-arg]
    return [space.placement(config).key for config in configs]


def test_distinct_valid_and_never_empty() -> None:
    found = Design(BIG, 3).first(200)
    assert len(set(keys(BIG, found))) == 200
    for config in found:
        BIG.validate(config)
        assert config.num_loras >= 1
        assert any(config.gates)


def test_addressable_by_index_whatever_was_asked_before() -> None:
    first = Design(BIG, 3).first(150)
    assert Design(BIG, 3)[149] == first[149]
    assert [Design(BIG, 3)[index] for index in (0, 70)] == [first[0], first[70]]
    with pytest.raises(IndexError):
        Design(BIG, 3)[-1]


def test_seeds_give_other_points() -> None:
    assert Design(BIG, 3).first(5) != Design(BIG, 4).first(5)
    Design(BIG, -1).first(1)
    Design(BIG, 2**70).first(1)


def test_fills_the_number_of_active_layers_evenly() -> None:
    active = [len(config.active) for config in Design(BIG, 0).first(64)]
    assert min(active) <= 2
    assert max(active) >= 31
    assert statistics.mean(active) == pytest.approx(16.5, abs=1)


def test_skips_what_was_seen() -> None:
    first = Design(BIG, 3).first(10)
    seen = set(keys(BIG, first[:4]))
    assert Design(BIG, 3).first(6, seen) == first[4:]


@pytest.mark.parametrize("factors", ["num", "size", "layer", "num+size", "num+layer", "size+layer"])
@pytest.mark.parametrize("default_num", [None, 2])
def test_small_spaces_are_produced_completely(factors: str, default_num: int | None) -> None:
    space = MemorySpace(4, 5, (8, 16, 32), factors=factors, default_num=default_num)
    everything = {space.placement(config).key for config in space.every_config()}
    found = keys(space, Design(space, 1).first(10_000))
    assert sorted(found) == sorted(everything)
    assert len(found) == count_placements(space)
    assert "" not in everything
    for config in space.every_config():
        space.validate(config)


def test_large_spaces_are_not_counted() -> None:
    assert count_placements(BIG) is None


@pytest.mark.parametrize("name", ["random", "sobol"])
def test_free_surrogates_find_the_last_placements(name: str) -> None:
    space = MemorySpace(3, 3, (8, 16))
    surrogate = make_surrogate(name)
    assert isinstance(surrogate, Sampler)
    every = sorted({space.placement(config).key for config in space.every_config()})
    seen = set(every[3:])
    assert sorted(keys(space, surrogate.configs(space, seen, 10, seed=5))) == every[:3]
    assert surrogate.configs(space, set(every), 10, seed=5) == []
    one, same = (surrogate.configs(BIG, set(), 6, seed=5) for _ in range(2))
    assert one == same
    assert one != surrogate.configs(BIG, set(), 6, seed=6)
