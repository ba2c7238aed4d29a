"""Placements and their keys, which are what is compared, cached and written down."""

from __future__ import annotations

import pytest

from milp_ray.errors import SpaceError
from milp_ray.memory.placement import Placement, deal


@pytest.mark.parametrize("key", ["", "0:8", "3:8,7:16", "0:1,10:96,11:2"])
def test_key_round_trip(key: str) -> None:
    assert Placement.from_key(key).key == key
    assert len(Placement.from_key(key)) == key.count(":")


@pytest.mark.parametrize(
    "key", ["3", "3:8,", "7:16,3:8", "3:8,3:8", "3:0", "-1:8", "03:8", "3:8 ", "a:b", "1:2:3"]
)
def test_bad_key(key: str) -> None:
    with pytest.raises(SpaceError):
        Placement.from_key(key)


@pytest.mark.parametrize("key", ["0:8;", ";dropout=0.1", "0:8;dropout", "0:8;dropout=0.10", "0:8;dropout=x"])
def test_a_key_with_a_setting_is_canonical(key: str) -> None:
    with pytest.raises(SpaceError):
        Placement.from_key(key)


@pytest.mark.parametrize("key", ["0:8;dropout=0.1", "3:8,7:16;epochs=3;rate=1e-05"])
def test_a_key_with_settings_round_trip(key: str) -> None:
    placement = Placement.from_key(key)
    assert placement.key == key
    assert placement != Placement(placement.ranks) and len(placement) == len(placement.ranks)
    assert placement.setting("unknown", 0.5) == 0.5


@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 7), (5, 2), (5, 5), (5, 12), (32, 31)])
def test_all_loras_are_dealt_over_distinct_positions(k: int, n: int) -> None:
    dealt = deal(k, n)
    assert sum(dealt.values()) == n and len(dealt) == min(k, n)
    assert list(dealt) == sorted(dealt) and set(dealt) <= set(range(k))
