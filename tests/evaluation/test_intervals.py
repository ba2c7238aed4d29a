"""Bootstrap intervals: scipy's, for the same draws; and they hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from milp_ray.evaluation.intervals import (
    FEW_USERS,
    Interval,
    Method,
    difference_interval,
    mean_interval,
    median_interval,
    user_means,
)


def users(values: np.ndarray) -> dict[str, float]:
    return {f"u-{index:04d}": float(value) for index, value in enumerate(values)}


@pytest.mark.parametrize("method", ["bca", "percentile"])
@pytest.mark.parametrize("size", [5, 12, 60])
def test_it_is_scipys(method: Method, size: int) -> None:
    values = np.random.default_rng(size).exponential(size=size)
    found = mean_interval(users(values), method=method, seed=3, n_resamples=999)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=999, method=method, rng=np.random.default_rng(3), vectorized=True
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.method == method and found.value == pytest.approx(values.mean())


def test_a_difference_is_that_of_each_user() -> None:
    rng = np.random.default_rng(0)
    base = 10 * rng.standard_normal(20)
    ours, theirs = users(base + 0.5 + 0.1 * rng.standard_normal(20)), users(base)
    found = difference_interval(ours, theirs)
    assert found == mean_interval({user: ours[user] - theirs[user] for user in ours})
    assert found.excludes_zero and 0.4 < found.low < found.value < found.high < 0.6
    assert not mean_interval(ours).excludes_zero, "users differ much more than methods do"


def test_it_follows_from_values_and_seed_alone() -> None:
    values = users(np.random.default_rng(1).standard_normal(9))
    backwards = dict(reversed(values.items()))
    assert mean_interval(values) == mean_interval(backwards) != mean_interval(values, seed=1)


def test_draws_in_parts_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = users(np.random.default_rng(1).standard_normal(9))
    whole = mean_interval(values)
    monkeypatch.setattr("milp_ray.evaluation.intervals._CELLS", 64)
    assert mean_interval(values) == whole


def test_weights_are_counted() -> None:
    values, weights = {"u-a": 1.0, "u-b": 3.0, "u-c": 5.0}, {"u-a": 1.0, "u-b": 1.0, "u-c": 2.0}
    assert mean_interval(values, weights).value == 3.5
    equal = users(np.random.default_rng(2).exponential(size=30))
    one, other = mean_interval(equal), mean_interval(equal, dict.fromkeys(equal, 7.0))
    assert (one.low, one.high) == pytest.approx((other.low, other.high))
    with pytest.raises(ValueError, match="weight"):
        mean_interval(values, {"u-a": 1.0, "u-b": 1.0})


def test_users_without_a_value_are_left_out_and_told() -> None:
    nan = float("nan")
    found = difference_interval({"u-a": 1.0, "u-b": nan, "u-c": 2.0}, {"u-a": 0.0, "u-b": 1.0, "u-d": 1.0})
    assert (found.users, found.left_out, found.value) == (1, 3, 1.0)
    assert str(found) == "1.0000 (no interval: 1 user, 3 left out)"


def test_few_users_are_told_as_few() -> None:
    assert FEW_USERS == 5
    for count in range(6):
        found = mean_interval(users(np.arange(1.0, count + 1)))
        assert found.few_users == (count < 5)
        assert math.isnan(found.low) == (count < 2)
        assert found.method == ("none" if count < 2 else "percentile" if count < 5 else "bca")
        assert ("too few to rely on" in str(found)) == (2 <= count < 5)
        assert found.excludes_zero == (count >= 5), "four users show nothing, however much they differ"
    assert math.isnan(mean_interval({}).value)


def test_equal_values_have_an_interval_of_no_width() -> None:
    found = mean_interval(dict.fromkeys("abcdefg", 0.1))
    assert (found.low, found.high) == pytest.approx((0.1, 0.1)) and found.method == "percentile"


def coverage(size: int, method: Method, draw: str) -> float:
    """How often a 95 % interval of so many users holds the true mean, of 600 intervals."""
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(600):
        values = rng.standard_normal(size) if draw == "normal" else rng.exponential(size=size) - 1
        found = mean_interval(users(values), method=method, n_resamples=499, seed=trial)
        held += found.low <= 0 <= found.high
    return held / 600


@pytest.mark.parametrize(
    ("size", "promised"),
    [(5, 0.84), (10, 0.90), (20, 0.93)],
)
def test_it_holds_the_truth_as_often_as_the_docs_say(size: int, promised: float) -> None:
    """Few users make them too narrow; 600 intervals tell a share of 0.9 to about 0.012."""
    assert coverage(size, "bca", "normal") == pytest.approx(promised, abs=0.025)


def test_bca_is_no_worse_where_values_are_skewed() -> None:
    percentile, corrected = (coverage(25, method, "skewed") for method in ("percentile", "bca"))
    assert 0.87 < percentile <= corrected + 0.01 < 0.97


@pytest.mark.parametrize("size", [5, 60, 5_000])
def test_the_medians_is_scipys(size: int) -> None:
    values = np.random.default_rng(size).exponential(size=size)
    found = median_interval(users(values) | {"u-none": float("nan")}, seed=3, n_resamples=199)
    expected = stats.bootstrap((values,), np.median, method="percentile", n_resamples=9_999, rng=3)
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert found.value == np.median(values) and (found.users, found.left_out) == (size, 1)
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=width / 8)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=width / 8)
    assert median_interval(users(values[:1])).method == "none" and math.isnan(median_interval({}).value)


def test_means_of_users_leave_out_what_has_no_score() -> None:
    nan = float("nan")
    assert user_means({"u-a": [1.0, None, 2.0], "u-b": [None], "u-c": [nan, 4.0]}) == {"u-a": 1.5, "u-c": 4.0}


@pytest.mark.parametrize("options", [{"level": 0.0}, {"level": 1.0}, {"n_resamples": 0}])
def test_what_cannot_be_asked_is_a_mistake(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="level"):
        mean_interval({"u-a": 1.0, "u-b": 2.0}, **options)  # type: ignore[arg-type]


def test_a_higher_level_is_wider() -> None:
    values = users(np.random.default_rng(1).standard_normal(30))
    widths = [
        one.high - one.low for one in (mean_interval(values, level=level) for level in (0.5, 0.9, 0.99))
    ]
    assert widths == sorted(widths) and isinstance(mean_interval(values), Interval)
