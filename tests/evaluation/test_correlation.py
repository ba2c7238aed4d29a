"""Correlations are scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from milp_ray.evaluation.correlation import pearson, spearman


@pytest.mark.parametrize("seed", range(5))
def test_they_are_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 6, 40).astype(float)  # with ties
    y = x**3 + 20 * rng.standard_normal(40)
    assert pearson(x.tolist(), y.tolist()) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
    assert spearman(x.tolist(), y.tolist()) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)


def test_ranks_see_order_alone() -> None:
    assert spearman([1, 2, 3, 4], [1, 10, 100, 1000]) == 1.0
    assert pearson([1, 2, 3, 4], [1, 10, 100, 1000]) < 0.9


def test_what_never_changes_correlates_with_nothing() -> None:
    assert math.isnan(pearson([0.1] * 3, [1, 2, 3])) and math.isnan(spearman([1, 2], [7, 7]))
    assert math.isnan(pearson([], [])) and math.isnan(pearson([1], [2]))
    with pytest.raises(ValueError, match="2 values beside 1"):
        pearson([1, 2], [1])
