"""Dominance, hypervolume and the knee of a front, exact and without a model.

Everything here is to be maximised: turn objectives around first (objectives.maximized). Arrays are
``n x m``: n points, m objectives. A row with a NaN is dominated: it never counts. What a reference
point should be is *not* covered: see reference.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Rows = Sequence[Sequence[float]] | Floats


def non_dominated(Y: Rows) -> npt.NDArray[np.bool_]:
    """Which rows no other row dominates.

    A row dominates another if it is at least as good everywhere and better somewhere; so equal rows
    are both kept.

    Args:
        Y: ``n x m``, to be maximised; n = 0 is fine.

    Returns:
        ``n`` booleans; False for rows with a NaN.
    """
    values = _table(Y)
    valid: npt.NDArray[np.bool_] = np.logical_not(np.isnan(values).any(axis=1))
    keep: npt.NDArray[np.bool_] = np.zeros(len(values), dtype=bool)
    # Whatever dominates a row comes before it in lexicographic order, and what is dominated is
    # dominated by a row of the front: each row need only be held against the front so far.
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
    """Whether a row of ``Y`` (``n x m``) dominates ``y`` (``m``); one with a NaN always is."""
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
        Y: ``n x m``, to be maximised; rows that do not beat the reference in every objective add
            nothing.
        reference: ``m`` finite numbers.

    Returns:
        In the product of the objectives' units; 0 for no rows.
    """
    ref_point = np.asarray(reference, dtype=np.float64)
    values = _table(Y)
    if len(values) == 0:
        return 0.0
    with np.errstate(invalid="ignore"):
        values = values[(values > ref_point).all(axis=1)]
    return _volume(values - ref_point)


def strips(front: Floats, ref_point: Sequence[float] | Floats) -> tuple[Floats, Floats, Floats]:
    """The box decomposition of two objectives: the plane above ``ref_point``, cut at each point.

    A strip stands on the staircase of the front and is open above; under its floor, down to the
    reference point, lies what the front dominates. So hypervolume, hypervolume improvement and the
    acquisition all read these three arrays. The strip of a dominated point is empty, or has the
    floor of the one beside it.

    Args:
        front: ``... x k x 2``, to be maximised; k = 0 is fine, points need not be above
            ``ref_point`` nor non-dominated.
        ref_point: ``2`` finite numbers.

    Returns:
        ``left``, ``right``: ``... x (k + 1)`` ends in the first objective, from infinity down to
            the
        reference point. ``floor``: as many, in the second objective.
    """
    # 1) what is not above the reference point is worth as much as what is on it
    x = np.maximum(front[..., 0], ref_point[0])  # ... x k
    y = np.maximum(front[..., 1], ref_point[1])  # ... x k
    # 2) from right to left a point ends one strip and begins the next
    order = (-x).argsort(axis=-1, kind="stable")
    ends = np.empty((*x.shape[:-1], x.shape[-1] + 2))  # ... x (k + 2)
    ends[..., 0], ends[..., -1] = np.inf, ref_point[0]
    ends[..., 1:-1] = _taken(x, order)
    # 3) the floor of a strip is the best second objective of all points to its right
    floor = np.empty((*x.shape[:-1], x.shape[-1] + 1))  # ... x (k + 1)
    floor[..., 0] = ref_point[1]
    np.maximum.accumulate(_taken(y, order), axis=-1, out=floor[..., 1:])
    return ends[..., 1:], ends[..., :-1], floor


def _taken(values: Floats, order: npt.NDArray[np.intp]) -> Floats:
    """``... x k`` values in an order of each row's own."""
    # One front is the usual case, and take_along_axis would cost as much as all the rest of strips.
    return values[order] if values.ndim == 1 else np.take_along_axis(values, order, axis=-1)


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
    low, high = values[front].min(axis=0), values[front].max(axis=0)  # m, m
    scaled = (values[front] - low) / np.where(high > low, high - low, 1.0)
    # Rounding makes ties of what floating point tells apart in the last bit only.
    order = [
        (round(float(row.sum()), 9), float(row.min()), -index)
        for index, row in zip(front, scaled, strict=True)
    ]
    return int(-max(order)[2])


def _table(Y: Rows) -> Floats:
    values = np.asarray(Y, dtype=np.float64)
    return values.reshape(0, 0) if values.size == 0 else values.reshape(len(values), -1)


def _volume(values: Floats) -> float:
    """Volume between ``n x m`` points and the origin, which all of them are above.

    By slicing along the last objective: between two heights the volume is that of all points above
    them in the objectives that are left.
    """
    # 1) no point, no volume; one objective: the best value
    if len(values) == 0:
        return 0.0
    if values.shape[1] == 1:
        return float(values.max())
    # 2) two objectives: the last one is what strips are cut along, and the first strip is above all
    if values.shape[1] == 2:
        left, right, floor = strips(values[:, ::-1], (0.0, 0.0))  # n + 1 each
        return float(np.sum(floor[1:] * (right[1:] - left[1:])))
    # 3) more: a slice a point, from the highest down; dominated points would only add empty ones
    values = values[non_dominated(values)]
    values = values[np.argsort(-values[:, -1], kind="stable")]
    lower = np.append(values[1:, -1], 0.0)  # n
    total = 0.0
    for index, thickness in enumerate(values[:, -1] - lower):
        if thickness > 0:
            total += float(thickness) * _volume(values[: index + 1, :-1])  # (index + 1) x (m - 1)
    return total
