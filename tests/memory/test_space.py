"""Configurations, their placements, and moving about in the space."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from milp_ray.config.models import MemoryDefaults, MemorySettings
from milp_ray.errors import SpaceError
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.placement import Placement
from milp_ray.memory.space import MemorySpace, space_from

RANKS = (8, 16, 32, 64, 96)
SUB_SPACES = ("num", "size", "layer", "num+size", "num+layer", "size+layer", "num+size+layer")


def space(factors: str = "num+size+layer", layers: int = 12, **more: object) -> MemorySpace:
    return MemorySpace(layers, layers, RANKS, factors, **more)  # type: ignore[arg-type]


def theta(active: set[int], num: int, rank: int = 8, layers: int = 12) -> MemoryConfig:
    return MemoryConfig(tuple(layer in active for layer in range(layers)), num, rank)


@pytest.mark.parametrize(
    ("active", "num", "key"),
    [
        ({3}, 1, "3:8"),
        ({3}, 5, "3:40"),
        ({2, 5, 9}, 3, "2:8,5:8,9:8"),
        ({2, 5, 9}, 1, "2:8"),
        ({2, 5, 9}, 2, "2:8,9:8"),
        ({2, 5, 9}, 4, "2:16,5:8,9:8"),
        ({2, 5, 9}, 8, "2:24,5:24,9:16"),
        ({0, 1, 2, 3}, 3, "0:8,2:8,3:8"),  # linspace 0, 1.5, 3: 1.5 rounds to the even 2
        (set(range(12)), 4, "0:8,4:8,7:8,11:8"),  # linspace 0, 3.67, 7.33, 11
        (set(), 4, ""),
        ({1, 2}, 0, ""),
    ],
)
def test_placement(active: set[int], num: int, key: str) -> None:
    assert space().placement(theta(active, num)).key == key


@pytest.mark.parametrize("layers", [1, 2, 7, 12, 32])
def test_placement_deals_every_lora(layers: int) -> None:
    """All n LoRAs arrive, evenly, on active layers only; fewer than these hit distinct ones."""
    rng = random.Random(layers)
    dealt = MemorySpace(layers, 3 * layers, (4,))
    for _ in range(300):
        config = dealt.sample(rng)
        ranks = dealt.placement(config).as_dict()
        assert set(ranks) <= set(config.active)
        assert sum(ranks.values()) == 4 * config.num_loras
        assert len(ranks) == min(config.num_loras, len(config.active))
        assert max(ranks.values()) - min(ranks.values()) <= 4


def test_effective_rank_is_capped_at_the_width() -> None:
    assert space(max_rank=20).placement(theta({1, 4}, 5)).key == "1:20,4:16"


@pytest.mark.parametrize("factors", SUB_SPACES)
@pytest.mark.parametrize(
    "defaults", [{}, {"default_num": 3, "default_rank": 32, "default_layers": (1, 5, 6)}]
)
def test_samples_and_neighbours_stay_inside(factors: str, defaults: dict[str, object]) -> None:
    inside = space(factors, max_rank=128, **defaults)
    rng = random.Random(1)
    for _ in range(40):
        config = inside.sample(rng)
        inside.validate(config)
        assert inside.placement(config).key != ""
        steps = inside.neighbours(config)
        keys = [inside.placement(step).key for step in steps]
        assert len(set(keys)) == len(keys)
        assert inside.placement(config).key not in keys
        assert "" not in keys
        for step in steps:
            inside.validate(step)
            assert "size" in factors or step.rank == config.rank
            assert "layer" in factors or step.gates == config.gates
            if "num" not in factors:
                fixed = len(step.active) if "default_num" not in defaults else 3
                assert step.num_loras == fixed


def test_neighbours_are_single_steps() -> None:
    found = space(layers=4).neighbours(theta({1, 2}, 2, 16, layers=4))
    assert {(step.active, step.num_loras, step.rank) for step in found} == {
        ((0, 1, 2), 2, 16), ((1, 2, 3), 2, 16),  # gate on; same as swapping to (0, 2) and to (1, 3)
        ((2,), 2, 16), ((1,), 2, 16),  # gate off: both LoRAs in one layer
        ((0, 1), 2, 16), ((2, 3), 2, 16),  # swaps
        ((1, 2), 1, 16), ((1, 2), 3, 16), ((1, 2), 4, 16),  # n; doubled is the same as the next rank
        ((1, 2), 2, 8),  # rank
    }  # fmt: skip


def test_every_placement_is_in_reach() -> None:
    """Neighbour steps connect a small space: no placement is an island."""
    small = MemorySpace(3, 3, (2, 4))
    rng = random.Random(0)
    everything = {small.placement(small.sample(rng)).key for _ in range(3000)}
    reached, frontier = set(), [theta({0}, 1, 2, layers=3)]
    while frontier:
        config = frontier.pop()
        if small.placement(config).key not in reached:
            reached.add(small.placement(config).key)
            frontier += small.neighbours(config)
    assert everything <= reached


def test_number_of_active_layers_is_spread_out() -> None:
    """One coin per layer would give 9 to 23 active layers of 32; each of 1…32 must occur."""
    wide = space(layers=32)
    rng = random.Random(3)
    counts = Counter(len(wide.sample(rng).active) for _ in range(3200))
    assert set(counts) == set(range(1, 33))
    assert max(counts.values()) < 2.0 * 100
    assert min(counts.values()) > 0.4 * 100


def test_from_unit_corners_and_errors() -> None:
    inside = space("num+size")
    assert inside.unit_dim == 2
    assert inside.from_unit([0, 0]) == theta(set(range(12)), 1, 8)
    assert inside.from_unit([1, 1]) == theta(set(range(12)), 12, 96)
    assert space().unit_dim == 12 + 3
    for wrong in ([0.5], [0.5, 1.1], [0.5, math.nan]):
        with pytest.raises(SpaceError):
            inside.from_unit(wrong)


@pytest.mark.parametrize(
    ("config", "factors"),
    [
        (theta({1}, 1, 8, layers=11), "num+size+layer"),
        (theta({1}, 13), "num+size+layer"),
        (theta({1}, -1), "num+size+layer"),
        (theta({1}, 1, 24), "num+size+layer"),
        (theta({1}, 1, 8), "num+layer"),  # the default rank is 16
        (theta({1}, 1, 8), "num+size"),  # the default layers are all
        (theta({1, 2}, 1, 8), "size+layer"),  # one LoRA per active layer
    ],
)
def test_validate_refuses(config: MemoryConfig, factors: str) -> None:
    with pytest.raises(SpaceError):
        space(factors).validate(config)


def test_no_memory_is_a_member() -> None:
    space().validate(theta({1, 2}, 0))
    space("size+layer").validate(theta(set(), 0))


@pytest.mark.parametrize("factors", SUB_SPACES)
def test_size_bounds_the_distinct_configurations(factors: str) -> None:
    small = MemorySpace(3, 2, (2, 4), factors, default_rank=2)
    rng = random.Random(0)
    seen = {small.sample(rng) for _ in range(2000)}
    assert len(seen) == small.size()


@pytest.mark.parametrize("factors", SUB_SPACES)
def test_features_are_in_the_unit_cube(factors: str) -> None:
    inside = space(factors, max_rank=128)
    rng = random.Random(2)
    for _ in range(200):
        values = inside.features(inside.placement(inside.sample(rng)))
        assert len(values) == inside.num_features == 13
        assert all(0 <= value <= 1 for value in values)
    assert inside.features(Placement()) == (0.0,) * 13
    assert max(inside.features(inside.placement(inside.largest()))) == 1.0


def test_features_tell_placements_apart() -> None:
    inside = space()
    one, two = (inside.features(Placement.from_key(key)) for key in ("3:8", "3:16"))
    assert one[3] < two[3]
    assert one[-1] < two[-1]
    assert one[4] == two[4] == 0
    with pytest.raises(SpaceError):
        inside.features(Placement.from_key("12:8"))


@pytest.mark.parametrize("factors", SUB_SPACES)
def test_smallest_and_largest_are_extremes(factors: str) -> None:
    inside = MemorySpace(6, 9, (4, 8), factors, default_rank=8, default_num=2, max_rank=32)
    rng = random.Random(5)
    totals = [sum(inside.placement(inside.sample(rng)).as_dict().values()) for _ in range(500)]
    for config in (inside.smallest(), inside.largest()):
        inside.validate(config)
    low, high = (
        sum(inside.placement(config).as_dict().values()) for config in (inside.smallest(), inside.largest())
    )
    assert low <= min(totals)
    assert high >= max(totals)


def test_space_from_settings() -> None:
    made = space_from(MemorySettings(), 12, 128)
    assert (made.max_loras, made.ranks, made.max_rank) == (12, RANKS, 128)
    assert space_from(MemorySettings(max_loras=5), 12, 128).max_loras == 5


def test_rank_above_the_width_names_the_ranks_to_remove() -> None:
    with pytest.raises(SpaceError) as caught:
        space_from(MemorySettings(), 12, 48)
    (problem,) = caught.value.problems
    assert "64, 96" in problem.fact
    assert problem.where == "memory.ranks"
    assert problem.remedy


def test_a_bound_on_a_layers_rank_caps_placements_and_names_the_ranks_above_it() -> None:
    made = space_from(MemorySettings(ranks=(8, 16), max_rank=32), 4, 128)
    assert made.max_rank == 32
    config = MemoryConfig((True, False, False, False), 4, 16)
    assert made.placement(config).key == "0:32"  # four LoRAs of 16 on one layer
    assert space_from(MemorySettings(max_rank=4000), 12, 128).max_rank == 128
    with pytest.raises(SpaceError, match=r"memory\.ranks: rank 64, 96 is above memory\.max_rank, 32"):
        space_from(MemorySettings(max_rank=32), 12, 128)


def test_unused_ranks_may_be_large() -> None:
    fixed = MemorySettings(factors="num+layer", defaults=MemoryDefaults(size=16))
    assert space_from(fixed, 12, 48).lora_rank.default == 16
    with pytest.raises(SpaceError, match=r"memory\.defaults\.size"):
        space_from(MemorySettings(factors="layer", defaults=MemoryDefaults(size=64)), 12, 48)


@pytest.mark.parametrize("layers", [(12,), (3, 3), ()])
def test_default_layers_must_exist(layers: tuple[int, ...]) -> None:
    with pytest.raises(SpaceError, match=r"memory\.defaults\.layers"):
        space_from(MemorySettings(factors="num", defaults=MemoryDefaults(layers=layers)), 12, 128)


def test_config_as_plain_values() -> None:
    config, inside = theta({1, 11}, 3, 64), space()
    assert inside.to_log(config) == {"gates": "010000000001", "num_loras": 3, "rank": 64}
    assert inside.from_log(inside.to_log(config)) == config
    for broken in (
        {},
        {"gates": "01x", "num_loras": 1, "rank": 8},
        {"gates": "01", "num_loras": True, "rank": 8},
    ):
        with pytest.raises(SpaceError):
            inside.from_log(broken)
