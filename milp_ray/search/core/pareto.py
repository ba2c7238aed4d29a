"""Dominance, hypervolume and the knee of a front, exact and without a model.

Everything here is to be maximised: turn objectives around first (objectives.gains). Arrays are ``n x m``: n
points, m objectives. A row with a NaN is dominated: it never counts. What a reference point should be is
*not* covered: see reference.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

Rows = Sequence[Sequence[float]] | npt.NDArray[np.float64]


def non_dominated(Y: Rows) -> npt.NDArray[np.bool_]:
    """Which rows no other row dominates.

    A row dominates another if it is at least as good everywhere and better somewhere; so equal rows are both
    kept.

    Args:
        Y: ``n x m``, to be maximised; n = 0 is fine.

    Returns:
        ``n`` booleans; False for rows with a NaN.
    """
    values = _table(Y)
    valid: npt.NDArray[np.bool_] = np.logical_not(np.isnan(values).any(axis=1))
    keep: npt.NDArray[np.bool_] = np.zeros(len(values), dtype=bool)
    # Whatever dominates a row comes before it in lexicographic order, and what is dominated is dominated by a
    # row of the front: each row need only be held against the front so far.
    order = np.lexsort(-values.T[::-1]) if values.size else np.arange(0)
    front = np.empty_like(values)
    count = 0
    for index in order[valid[order]]:
        row = values[index]
        better = front[:count]
        if not bool(((better >= row).all(axis=1) & (better > row).any(axis=1)).any()):
            front[count] = row
            count += 1
            keep[index] = True
    return keep


def dominated_by_any(y: Sequence[float], Y: Rows) -> bool:
    """Whether a row of ``Y`` (``n x m``) dominates the point ``y`` (``m``); a ``y`` with a NaN always is."""
    point, values = np.asarray(y, dtype=np.float64), _table(Y)
    if np.isnan(point).any():
        return True
    if len(values) == 0:
        return False
    with np.errstate(invalid="ignore"):
        return bool(((values >= point).all(axis=1) & (values > point).any(axis=1)).any())


def hypervolume(Y: Rows, reference: Sequence[float]) -> float:
    """The volume that the rows dominate above a reference point; exact for any m.

    Args:
        Y: ``n x m``, to be maximised; rows that do not beat the reference in every objective add nothing.
        reference: ``m`` finite numbers.

    Returns:
        In the product of the objectives' units; 0 for no rows.
    """
    bottom = np.asarray(reference, dtype=np.float64)
    values = _table(Y)
    if len(values) == 0:
        return 0.0
    with np.errstate(invalid="ignore"):
        values = values[(values > bottom).all(axis=1)]
    return _volume(values - bottom)


def hypervolume_curve(Y: Rows, reference: Sequence[float]) -> list[float]:
    """:func:`hypervolume` of the first row, the first two, …; never decreasing."""
    volumes = (hypervolume(Y[:count], reference) for count in range(1, len(Y) + 1))
    return list(accumulate(volumes, max))  # the order of additions may cost a last bit


def knee(Y: Rows) -> int:
    """The balanced row: the largest sum of objectives, each scaled to [0, 1] over the front.

    For two objectives this is the point farthest from the line through the front's two ends
    (docs/references.md: Das 1999). Ties go to the row whose worst objective is best, then to the
    lowest index.

    Args:
        Y: ``n x m``, to be maximised; dominated rows are never chosen.

    Raises:
        ValueError: no row without NaN.
    """
    values = _table(Y)
    front = np.flatnonzero(non_dominated(values))
    if len(front) == 0:
        raise ValueError("no point to choose from")
    low, high = values[front].min(axis=0), values[front].max(axis=0)
    scaled = (values[front] - low) / np.where(high > low, high - low, 1.0)
    # Rounding makes ties of what floating point tells apart in the last bit only.
    order = [
        (round(float(row.sum()), 9), float(row.min()), -index)
        for index, row in zip(front, scaled, strict=True)
    ]
    return int(-max(order)[2])


def _table(Y: Rows) -> npt.NDArray[np.float64]:
    values = np.asarray(Y, dtype=np.float64)
    return values.reshape(0, 0) if values.size == 0 else values.reshape(len(values), -1)


def _volume(values: npt.NDArray[np.float64]) -> float:
    """Volume above the origin, by slicing along the last objective."""
    if len(values) == 0:
        return 0.0
    if values.shape[1] == 1:
        return float(values.max())
    if values.shape[1] > 2:
        values = values[non_dominated(values)]
    values = values[np.argsort(-values[:, -1], kind="stable")]
    lower = np.append(values[1:, -1], 0.0)
    if values.shape[1] == 2:
        return float(np.sum(np.maximum.accumulate(values[:, 0]) * (values[:, -1] - lower)))
    total = 0.0
    for index, height in enumerate(values[:, -1] - lower):
        if height > 0:
            total += float(height) * _volume(values[: index + 1, :-1])
    return total
