"""Win rate, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milp_ray.evaluation.win_rate import WinRate, shares, verdicts, win_rate

SCORES = st.lists(st.tuples(*[st.none() | st.integers(1, 10)] * 2), max_size=30)


def test_ties_count_half() -> None:
    found = win_rate([8, 7, 9, 6], [7, 7, 8, 8])
    assert found == WinRate(wins=2, ties=1, losses=1) and found.value == 0.625
    assert str(found) == "62.5 % (2 won, 1 tied, 1 lost)"


def test_a_pair_without_a_score_is_left_out_and_told() -> None:
    found = win_rate([8, None, 9, 3], [7, 7, None, 4])
    assert found == WinRate(1, 0, 1, unscored=2) and found.value == 0.5
    assert "2 without a score" in str(found)
    nothing = win_rate([None], [3])
    assert math.isnan(nothing.value) and str(nothing).startswith("none (")


@given(SCORES)
def test_the_other_side_has_the_rest(pairs: list[tuple[float | None, float | None]]) -> None:
    ours, theirs = [one for one, _ in pairs], [other for _, other in pairs]
    one, other = win_rate(ours, theirs), win_rate(theirs, ours)
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert one.unscored == other.unscored == sum(None in pair for pair in pairs)
    if any(None not in pair for pair in pairs):
        assert one.value + other.value == pytest.approx(1)


@given(SCORES)
def test_it_is_the_mean_of_its_shares(pairs: list[tuple[float | None, float | None]]) -> None:
    found = shares(verdicts([one for one, _ in pairs], [other for _, other in pairs]))
    rate = win_rate([one for one, _ in pairs], [other for _, other in pairs]).value
    assert (sum(found) / len(found) == pytest.approx(rate)) if found else math.isnan(rate)


def test_different_numbers_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="argument"):
        win_rate([1], [])
