from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from botorch.utils.multi_objective.hypervolume import Hypervolume
from botorch.utils.multi_objective.pareto import is_non_dominated

from milp_ray.search.core.pareto import dominated_by_any, hypervolume, knee, non_dominated, strips

NAN = float("nan")


def test_dominance_known_by_hand() -> None:
    Y = [(3, 1), (1, 3), (2, 2), (1, 1), (2, 1), (3, 1)]
    assert non_dominated(Y).tolist() == [True, True, True, False, False, True]  # equal rows are both kept


def test_a_row_with_nan_is_dominated_and_dominates_nothing() -> None:
    assert non_dominated([(NAN, 9), (1, 1), (9, NAN)]).tolist() == [False, True, False]
    assert non_dominated([]).tolist() == []
    assert dominated_by_any((NAN, 1), []) is True
    assert dominated_by_any((1, 1), [(NAN, 2)]) is False


def test_dominated_by_any() -> None:
    assert dominated_by_any((1, 1), [(0, 5), (2, 1)]) is True
    assert dominated_by_any((1, 1), [(1, 1)]) is False
    assert dominated_by_any((1, 1), []) is False


@pytest.mark.parametrize(
    ("Y", "reference", "volume"),
    [
        ([(2, 1), (1, 2)], (0, 0), 3.0),
        ([(2, 1), (1, 2), (1, 1)], (0, 0), 3.0),
        ([(3,), (5,)], (1,), 4.0),
        ([(1, 1, 1)], (0, 0, 0), 1.0),
        ([(2, 1, 1), (1, 2, 1), (1, 1, 2)], (0, 0, 0), 4.0),
        ([(2, 2, 2), (1, 1, 1)], (0, 0, 0), 8.0),
        ([(-1, 5)], (0, 0), 0.0),
        ([(0, 5)], (0, 0), 0.0),
        ([(NAN, 5), (1, 1)], (0, 0), 1.0),
        ([], (0, 0), 0.0),
    ],
)
def test_hypervolume_known_by_hand(
    Y: list[tuple[float, ...]], reference: tuple[float, ...], volume: float
) -> None:
    assert hypervolume(Y, reference) == pytest.approx(volume)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_agrees_with_botorch(m: int) -> None:
    Y = torch.rand(30, m, generator=torch.Generator().manual_seed(m), dtype=torch.double)
    assert non_dominated(Y.numpy()).tolist() == is_non_dominated(Y).tolist()
    reference = torch.full((m,), 0.1, dtype=torch.double)
    expected = Hypervolume(reference).compute(Y[is_non_dominated(Y)])
    assert hypervolume(Y.numpy(), reference.tolist()) == pytest.approx(expected)


def test_hypervolume_does_not_depend_on_order() -> None:
    rows = np.random.default_rng(0).random((20, 3)).tolist()
    shuffled = random.Random(1).sample(rows, len(rows))
    assert hypervolume(rows, (0, 0, 0)) == pytest.approx(hypervolume(shuffled, (0, 0, 0)))


def test_knee_is_the_balanced_point() -> None:
    assert knee([(0, 10), (0.8, 8), (1, 0)]) == 1
    assert knee([(0.0, 10.0), (1.0, 0.0)]) == 0  # the two ends are alike: the first
    assert knee([(5, 5)]) == 0
    assert knee([(NAN, 100), (5, 5), (4, 4)]) == 1
    assert knee([(1, 7), (2, 7), (0, 7)]) == 1  # an objective without range does not count


def test_knee_does_not_depend_on_units() -> None:
    rows = [(0, 10), (0.5, 9), (0.9, 5), (1, 0)]
    assert knee(rows) == knee([(1e6 * a - 3, b / 1e3) for a, b in rows])


def test_knee_of_nothing() -> None:
    with pytest.raises(ValueError, match="no point"):
        knee([(NAN, 1)])


def test_strips_cover_the_plane_above_the_front_once() -> None:
    front = np.array(
        [[[1.0, 3.0], [2.0, 2.0], [1.5, 1.0], [0.5, -4.0]], [[3.0, 3.0], [1.0, 1.0], [0.0, 0.0], [2.0, 5.0]]]
    )
    left, right, floor = strips(front, (0.0, 0.0))
    assert left.shape == right.shape == floor.shape == (2, 5)
    assert (right[:, 1:] == left[:, :-1]).all() and np.isinf(right[:, 0]).all() and (left[:, -1] == 0).all()
    for x, y in np.random.default_rng(0).uniform(0, 6, (50, 2)):
        above = (left <= x) & (x < right) & (floor <= y)
        assert above.sum(axis=1).tolist() == [not dominated_by_any((x, y), list(part)) for part in front]


def test_strips_of_nothing_are_one_quadrant() -> None:
    left, right, floor = strips(np.empty((0, 2)), (1.0, 2.0))
    assert (left.tolist(), right.tolist(), floor.tolist()) == ([1.0], [np.inf], [2.0])
