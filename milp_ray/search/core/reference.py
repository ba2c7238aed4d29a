"""The point that hypervolume is measured from, and an Ax experiment takes its thresholds from.

The rule, for objectives turned so that more is better:

1. Nothing given: *inferred*, the nadir of the front minus a tenth of the front's range
   (docs/references.md: Ishibuchi 2011), objective by objective. Where the front has no range, that
   of all observations counts, and where these have none either, a tenth of the absolute value.
2. Given (the no-memory measurement): it stays as it is, over the whole search, as in AutoPEFT
   (Zhou 2024): what is worth having is what beats no memory. Only while *no* observation beats it
   in every objective, it is lowered to the componentwise minimum of itself and the inferred point;
   every point of the front then has some volume, and the search a direction.
3. An exact objective (trainable parameters) is known everywhere, so its component is fixed before
   the first trial: the worst value over a fixed sample of the space, minus a tenth of the sample's
   range. A given component takes its place only if some placement of the sample beats it: no memory
   costs 0 parameters, which nothing can.

A component that was not given (NaN) is inferred. The result depends on observations alone, not on
their order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from milp_ray.config.objectives import Objective
from milp_ray.errors import SearchError
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.space import MemorySpace
from milp_ray.search.core.objectives import exact_values, finite
from milp_ray.search.core.pareto import Rows, non_dominated

SHARE = 0.1


def reference_point(
    Y: Rows, given: Sequence[float], *, lowered: bool = False
) -> npt.NDArray[np.float64] | None:
    """The reference point for what was observed so far.

    Args:
        Y: ``n x m`` observations, to be maximised; n = 0 is fine, rows with a NaN do not count.
        given: ``m`` numbers in the same direction, NaN where nothing is given.
        lowered: take the componentwise minimum of rule 2 in any case, so that the whole front has
            volume: for drawing how a search went, where a curve from a point that few trials beat
            is a single step.

    Returns:
        ``m`` finite numbers, or None where a component is neither given nor can be inferred (no
        observation).
    """
    wanted = np.asarray(given, dtype=np.float64)
    values = np.asarray(Y, dtype=np.float64).reshape(-1, len(wanted))
    values = values[~np.isnan(values).any(axis=1)]
    known = ~np.isnan(wanted)
    if len(values) == 0:
        return wanted.copy() if known.all() else None
    inferred = _inferred(values)
    if not lowered and (values[:, known] > wanted[known]).all(axis=1).any():
        return np.where(known, wanted, inferred)
    return np.where(known, np.fmin(wanted, inferred), inferred)


def given_point(
    objectives: Sequence[Objective],
    values: Mapping[str, float] | None,
    ranges: Sequence[tuple[float, float] | None],
) -> tuple[float, ...]:
    """``m`` components for :func:`reference_point`: rule 3, and NaN where nothing is known.

    Args:
        objectives: m of them.
        values: the reference as given, in the user's units, or None.
        ranges: result of :func:`exact_ranges`.
    """
    result = []
    for objective, extent in zip(objectives, ranges, strict=True):
        given = values is not None and objective.name in values
        value = objective.maximized(values[objective.name]) if values is not None and given else math.nan
        if extent is not None and not value < extent[1]:
            worst, best = extent
            value = worst - SHARE * (best - worst if best > worst else max(abs(worst), 1.0))
        result.append(value)
    return tuple(result)


def checked_reference(objectives: Sequence[Objective], values: Mapping[str, float]) -> dict[str, float]:
    """A reference as it was given, in the order of ``objectives``; exact ones may be left out.

    Raises:
        SearchError: a measured objective is missing, a name is unknown, or a value is not finite.
    """
    names = [objective.name for objective in objectives]
    needed = [objective.name for objective in objectives if objective.exact is None]
    if not set(needed) <= set(values) <= set(names):
        raise SearchError(
            "the reference does not have the search's objectives",
            expected=f"a value for {', '.join(needed)}",
        )
    return {name: finite(values[name], f"the reference's {name}") for name in names if name in values}


def exact_ranges(
    space: MemorySpace, objectives: Sequence[Objective], sample: Iterable[MemoryConfig]
) -> tuple[tuple[float, float] | None, ...]:
    """Per objective the (worst, best) exact value over ``sample``, maximised; None: measured.

    Raises:
        SearchError: an exact objective is not finite somewhere.
    """
    if all(objective.exact is None for objective in objectives):
        return tuple(None for _ in objectives)
    tables = [exact_values(objectives, space.placement(config)) for config in sample]
    result: list[tuple[float, float] | None] = []
    for objective in objectives:
        if objective.exact is None:
            result.append(None)
            continue
        found = [objective.maximized(table[objective.name]) for table in tables]
        result.append((min(found), max(found)))
    return tuple(result)


def _inferred(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    front = values[non_dominated(values)]
    nadir = front.min(axis=0)
    extent = front.max(axis=0) - nadir
    extent = np.where(extent > 0, extent, values.max(axis=0) - values.min(axis=0))
    extent = np.where(extent > 0, extent, np.abs(nadir))
    return np.asarray(nadir - SHARE * np.where(extent > 0, extent, 1.0), dtype=np.float64)
