"""Every factor keeps the contract of factors, and a space with a setting is one like any other."""

from __future__ import annotations

import random

import numpy as np
import pytest

from milp_ray.config.factors import FACTORS
from milp_ray.errors import SpaceError
from milp_ray.memory import space as space_module
from milp_ray.memory.arrays import Configs, SpaceArrays, key_of, keys
from milp_ray.memory.factors import SETTINGS, Factor, MemoryConfig, Setting
from milp_ray.memory.lora_factors import LayerGates, LoraCount, LoraRank
from milp_ray.memory.placement import Placement
from milp_ray.memory.space import MemorySpace

DROPOUT = Setting("drop", (0, 0.05, 0.2))
HERE = MemoryConfig((True, False, True, False), 3, 16, (("drop", 0.05),))
EVERY: list[Factor] = [
    LayerGates(4, (0, 1), True),
    LoraCount(6, None, True),
    LoraRank((8, 16, 32), 16, True),
    DROPOUT,
    *SETTINGS,
]
FIXED: list[Factor] = [LayerGates(4, (0, 2), False), LoraCount(6, 3, False), LoraRank((8, 32), 16, False)]


@pytest.fixture
def with_dropout(monkeypatch: pytest.MonkeyPatch) -> MemorySpace:
    """A space that searches a setting, too."""
    monkeypatch.setattr(space_module, "SETTINGS", (DROPOUT,))
    monkeypatch.setattr(space_module, "FACTORS", (*FACTORS, "drop"))
    return MemorySpace(4, 4, (8, 16), "num+size+layer+drop", max_rank=24)


def test_what_a_study_can_name_are_the_factors_that_there_are() -> None:
    known = [LoraCount.name, LoraRank.name, LayerGates.name, *(setting.name for setting in SETTINGS)]
    assert list(FACTORS) == known


@pytest.mark.parametrize("factor", EVERY, ids=lambda factor: factor.name)
def test_a_searched_factor_keeps_the_contract(factor: Factor) -> None:
    every = list(factor.values())
    assert len(every) == len(set(every)) == factor.count
    assert {factor.smallest, factor.largest} <= set(every)
    rng = random.Random(0)
    drawn = [factor.from_unit([rng.random() for _ in range(factor.unit_dim)]) for _ in range(2000)]
    assert set(drawn) == set(every)
    assert {factor.from_unit([corner] * factor.unit_dim) for corner in (0.0, 1.0)} <= set(every)
    for value in every:
        config = factor.put(HERE, value)
        factor.check(config)
        assert factor.of(config) == value
        assert [other.of(config) for other in EVERY if other.name != factor.name] == [
            other.of(HERE) for other in EVERY if other.name != factor.name
        ]
        assert factor.from_log(factor.to_log(config)) == value
        assert factor.from_parameters(factor.to_parameters(config)) == value
        for steps in (factor.near(config), factor.far(config)):
            for step in steps.tolist():
                moved = factor.put(config, step)
                assert factor.of(moved) in every and factor.of(moved) != value
    assert len(factor.parameters) == len(factor.to_parameters(HERE)) > 0


@pytest.mark.parametrize("factor", FIXED, ids=lambda factor: factor.name)
def test_a_factor_that_is_not_searched_has_one_value_and_is_no_parameter(factor: Factor) -> None:
    factor.check(HERE)
    assert factor.parameters == factor.constraints == factor.to_parameters(HERE) == ()
    with pytest.raises(SpaceError):
        factor.check(factor.put(HERE, factor.largest))


@pytest.mark.parametrize("factor", EVERY, ids=lambda factor: factor.name)
@pytest.mark.parametrize("value", [None, True, [1], "x"], ids=repr)
def test_what_a_log_cannot_have_is_refused(factor: Factor, value: object) -> None:
    with pytest.raises(SpaceError):
        factor.from_log(value)


@pytest.mark.parametrize("numbers", [(), (0.1, 0.1), (0.2, 0.1), (0.0, float("inf"))])
def test_a_settings_numbers_increase(numbers: tuple[float, ...]) -> None:
    with pytest.raises(SpaceError):
        Setting("dropout", numbers)


def test_a_setting_is_part_of_what_is_searched_logged_and_modelled(with_dropout: MemorySpace) -> None:
    space, rng = with_dropout, random.Random(4)
    assert space.searched == "num+size+layer+drop"
    assert space.describe()["settings"] == {"drop": [0.0, 0.05, 0.2]}
    assert space.unit_dim == 4 + 1 + 3 and space.num_features == 4 + 2
    assert space.size() == 3 * MemorySpace(4, 4, (8, 16)).size() == len(set(space.every_config()))
    drawn = [space.sample(rng) for _ in range(200)]
    assert {dict(config.settings)["drop"] for config in drawn} == {0.0, 0.05, 0.2}
    for config in drawn:
        space.validate(config)
        placement = space.placement(config)
        assert space.from_log(space.to_log(config)) == config
        assert Placement.from_key(placement.key) == placement
        assert all(0 <= value <= 1 for value in space.features(placement))
    config = MemoryConfig((True, False, False, False), 1, 8, (("drop", 0.05),))
    assert space.placement(config).key == "0:8;drop=0.05"
    assert space.features(space.placement(config))[-1] == 0.5
    around = {space.placement(step).key for step in space.neighbours(config)}
    assert {"0:8;drop=0", "0:8;drop=0.2", "0:16;drop=0.05"} <= around
    for wrong in ((), (("drop", 0.1),), (("rate", 0.05),), (*config.settings, ("rate", 1.0))):
        with pytest.raises(SpaceError):
            space.validate(MemoryConfig(config.gates, 1, 8, wrong))


def test_arrays_with_a_setting_obey_the_rules_of_the_space(with_dropout: MemorySpace) -> None:
    space, rng = with_dropout, random.Random(5)
    arrays, drawn = SpaceArrays(space), [space.sample(rng) for _ in range(100)]
    configs, placements = Configs.of(drawn, space), [space.placement(config) for config in drawn]
    rows = arrays.rows(configs)
    assert [configs.one(index) for index in range(len(configs))] == drawn
    assert [arrays.placement(row) for row in rows.tolist()] == placements
    assert keys(rows) == [key_of(placement, space) for placement in placements]
    assert np.allclose(arrays.features(rows), [space.features(p) for p in placements], rtol=0, atol=1e-14)
    for config in drawn[:20]:
        found = arrays.neighbours(config)
        reached = {space.placement(found.one(index)).key for index in range(len(found))}
        known = {space.placement(other).key for other in space.neighbours(config)}
        assert reached - {space.placement(config).key} == known


def test_a_setting_that_is_not_searched_stands_nowhere(with_dropout: MemorySpace) -> None:
    space = MemorySpace(4, 4, (8, 16))
    assert space.settings == () and "settings" not in space.describe()
    placement = space.placement(space.sample(random.Random(0)))
    assert ";" not in placement.key and placement.setting("drop", 0.3) == 0.3
