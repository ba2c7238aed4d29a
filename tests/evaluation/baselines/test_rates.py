"""The choice of a learning rate: the study's own, unless another is better beyond chance."""

from __future__ import annotations

import math

import pytest

from milp_ray.errors import TrialFailed
from milp_ray.evaluation.baselines.rates import best_rate

OWN, LOW, HIGH = 1e-3, 3e-4, 3e-3


def test_chance_among_a_few_users_decides_nothing() -> None:
    own = [2.0, 3.0, 4.0, 5.0]
    lower_on_average = [1.8, 3.2, 3.8, 5.1]  # by 0.025, with a standard error of 0.11
    assert best_rate({OWN: own, LOW: lower_on_average}, OWN) == OWN


def test_a_rate_that_is_better_for_all_is_taken() -> None:
    own = [2.0, 3.0, 4.0, 5.0]
    losses = {LOW: [one - 0.01 for one in own], OWN: own, HIGH: [one - 0.02 for one in own]}
    assert best_rate(losses, OWN) == HIGH


def test_users_differ_by_more_than_rates_do_and_are_paired() -> None:
    own = [1.0, 5.0, 9.0]
    assert best_rate({OWN: own, LOW: [0.99, 4.98, 8.99]}, OWN) == LOW


def test_fewer_than_three_losses_say_nothing_of_their_noise() -> None:
    assert best_rate({OWN: [2.0, 3.0], LOW: [1.9, 3.05]}, OWN) == LOW
    assert best_rate({OWN: [2.0], LOW: [1.9]}, OWN) == LOW


def test_rates_that_fail_are_not_taken() -> None:
    assert best_rate({OWN: [math.inf], LOW: [2.0, 2.0, 2.0], HIGH: [1.9, 1.9, 1.9]}, OWN) == HIGH
    assert best_rate({OWN: [2.0, 2.1, 2.2], LOW: [math.inf]}, OWN) == OWN
    with pytest.raises(TrialFailed, match="no learning rate"):
        best_rate({OWN: [math.inf], LOW: [math.inf]}, OWN)


def test_without_the_studys_own_the_lowest_mean_decides() -> None:
    assert best_rate({LOW: [2.0, 2.0, 2.3], HIGH: [2.1, 2.1, 1.9]}, OWN) == HIGH
