"""Length and position bias, on judges made to have them."""

from __future__ import annotations

import math

import pytest

from milp_ray.evaluation.bias import LengthGroup, length_bias, position_bias


def test_a_judge_that_counts_characters_is_found_out() -> None:
    responses = ["x" * length for length in (5, 80, 10, 40, 20, 60, 30, 7)]
    found = length_bias(responses, [1 + len(text) / 10 for text in responses])
    assert found.pearson == pytest.approx(1) and found.spearman == pytest.approx(1)
    assert found.quartiles[0] == LengthGroup(2, 5, 7, pytest.approx(1.6))
    assert [group.count for group in found.quartiles] == [2, 2, 2, 2]
    assert "60 to 80 characters: 8.00 (2)" in str(found)


def test_a_judge_that_does_not_has_none() -> None:
    responses = ["x" * length for length in range(1, 9)]
    assert abs(length_bias(responses, [5, 6, 6, 5, 5, 6, 6, 5]).spearman) < 1e-12
    assert math.isnan(length_bias(responses, [5] * 8).pearson)


def test_responses_without_a_score_are_left_out() -> None:
    found = length_bias(["a", "bb", "ccc"], [1, None, 2])
    assert [group.count for group in found.quartiles] == [1, 1] and found.pearson == pytest.approx(1)
    assert length_bias([], []).quartiles == ()
    with pytest.raises(ValueError, match="argument"):
        length_bias(["a"], [])


def test_verdicts_that_flip_are_counted_and_are_ties() -> None:
    forward = [1, 1, -1, 0, 1, None, -1]
    backward = [-1, 1, 1, 0, 0, 1, -1]
    found = position_bias(forward, backward)
    assert (found.pairs, found.flips, found.unanswered) == (6, 3, 1)
    assert found.verdicts == (1, 0, -1, 0, 0, None, 0)
    assert (found.first, found.second) == (5, 4) and found.flip_share == 0.5
    assert "3 of 6 verdicts flip with the order (50 %)" in str(found)


def test_a_judge_that_takes_the_first_flips_always() -> None:
    found = position_bias([1] * 5, [1] * 5)
    assert found.flip_share == found.first_share == 1.0
    nothing = position_bias([None], [1])
    assert math.isnan(nothing.flip_share) and math.isnan(nothing.first_share) and "no pair" in str(nothing)
