"""Pearson's and Spearman's correlation of two lists of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's r; NaN for fewer than two pairs, or where one of the lists never changes.

    Raises:
        ValueError: different lengths.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} values beside {len(y)}")
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    # By the range: the deviations of equal numbers from their rounded mean need not be 0.
    if len(a) < 2 or not np.ptp(a) or not np.ptp(b):
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rho: Pearson's r of the ranks, equal values sharing the mean of theirs."""
    return pearson(list(_ranks(x)), list(_ranks(y)))


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, group, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[group], dtype=np.float64)
