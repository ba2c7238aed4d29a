"""The schedule of the learning rate: linear warm-up, linear decay."""

from __future__ import annotations

import pytest

from milp_ray.training.loop import lr_factor


@pytest.mark.parametrize(
    ("steps", "warmup"), [(1, 0.1), (1, 0.0), (10, 0.1), (36, 0.1), (200, 0.5), (3, 0.9)]
)
def test_the_learning_rate_rises_then_falls(steps: int, warmup: float) -> None:
    rates = [lr_factor(step, steps, warmup) for step in range(steps)]
    assert all(0 < value <= 1 for value in rates)
    assert max(rates) == 1.0
    top = rates.index(1.0)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_values_of_the_learning_rate() -> None:
    assert [round(lr_factor(step, 10, 0.2), 4) for step in range(10)] == [
        0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125,
    ]  # fmt: skip
