"""Checks of objectives and of their values: what an engine is given, and what it is told.

What an objective is stands in :mod:`milp_ray.config.objectives`, thresholds in reference.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from milp_ray.config.objectives import Objective
from milp_ray.errors import SearchError
from milp_ray.memory.placement import Placement


def checked_objectives(objectives: Sequence[Objective]) -> tuple[Objective, ...]:
    """``objectives`` as a tuple.

    Raises:
        SearchError: none at all, none that is measured, or a name twice.
    """
    result = tuple(objectives)
    names = [objective.name for objective in result]
    if len(set(names)) != len(names):
        raise SearchError(f"an objective is named twice: {', '.join(names)}", expected="distinct names")
    if all(objective.exact is not None for objective in result):
        raise SearchError(
            "no objective is measured",
            expected="at least one objective without `exact`",
            remedy="an exact objective alone needs no trials: minimise it directly",
        )
    return result


def exact_values(objectives: Sequence[Objective], placement: Placement) -> dict[str, float]:
    """The exact objectives' values at ``placement``, by name.

    Raises:
        SearchError: a function returned something that is not a finite number.
    """
    result = {}
    for objective in objectives:
        if objective.exact is not None:
            result[objective.name] = finite(
                objective.exact(placement), f"the exact objective {objective.name}"
            )
    return result


def checked_values(
    objectives: Sequence[Objective], values: Mapping[str, float], exact: Mapping[str, float]
) -> dict[str, float]:
    """What was told, completed by the exact values, in the order of ``objectives``.

    Args:
        objectives: of the search.
        values: measured values by name; exact objectives may be left out.
        exact: the exact objectives' values.

    Raises:
        SearchError: a name is missing or unknown, a value is not a finite number, or a told exact
            value is not the computed one (to a millionth).
    """
    if not isinstance(values, Mapping):
        raise SearchError("values are not given by name", expected='a mapping such as {"loss": 2.31}')
    names = [objective.name for objective in objectives]
    missing = [name for name in names if name not in values and name not in exact]
    unknown = len([name for name in values if name not in names])
    if missing or unknown:
        facts = [f"no value for {', '.join(missing)}"] if missing else []
        facts += [f"{unknown} unknown name{'s' if unknown > 1 else ''}"] if unknown else []
        raise SearchError("; ".join(facts), expected=f"one value for each of {', '.join(names)}")
    told = {name: finite(values[name], f"the value of {name}") for name in names if name in values}
    for name, value in exact.items():
        if name in told and not math.isclose(told[name], value, rel_tol=1e-6, abs_tol=1e-9):
            raise SearchError(
                f"{name} was told as {told[name]:g}, and is {value:g} by its definition",
                remedy=f"leave {name} out of what is told: it is computed from the placement",
            )
    return {name: exact[name] if name in exact else told[name] for name in names}


def finite(value: object, what: str) -> float:
    """``value`` as a float.

    Raises:
        SearchError: it is not a number (a bool is none), NaN or infinite.
    """
    # NumPy's and torch's scalars are numbers too, but are no subclass of int or float.
    try:
        number = math.nan if isinstance(value, (bool, str, bytes)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if type(value).__name__ in ("bool", "bool_") or not math.isfinite(number):
        raise SearchError(
            f"{what} is not a finite number",
            expected="a number that is neither NaN nor infinite",
            remedy="report a trial without a usable measurement with fail(id, reason)",
        )
    return number


def whole_number(value: object, name: str, least: int | None) -> int:
    """``value``, the argument called ``name``.

    Raises:
        SearchError: it is not a whole number (a bool is none), or below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise SearchError(
            f"{name} is not a whole number" + ("" if least is None else f" from {least} on"),
            remedy=f"give {name} such a number",
        )
    return value
