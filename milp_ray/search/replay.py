"""A search as its event log has it now, for those who only look at it.

A log is only read: no lock is taken, nothing is mended, and an unfinished last line is ignored. The
base model is not needed. So the number of trainable parameters is known only where it is an
objective, and then its hypervolume is measured from an inferred point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from milp_ray.config.objectives import OBJECTIVES, Objective
from milp_ray.errors import StorageError
from milp_ray.memory.space import MemorySpace
from milp_ray.search.core.design import count_placements
from milp_ray.search.core.events import Event, events_so_far
from milp_ray.search.state import SearchState
from milp_ray.search.view import SearchView


def search_of(events: Sequence[Event], log: Path) -> SearchView | None:
    """What a log's events add up to; None for a log without any.

    Raises:
        StorageError: an event could not have happened.
        SearchError, SpaceError: the log is of another version.
    """
    if not events:
        return None
    try:
        space, objectives = _space(events[0]["space"]), _objectives(events[0]["objectives"])
        seed = int(str(events[0]["seed"]))
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError("line 1 of the event log is damaged", where=str(log)) from error
    state = SearchState(space, objectives, seed, log)
    for event in events:
        state.apply(event)
    # Exact values are told with the others; the functions that compute them would need the base.
    return SearchView(space, tuple(replace(one, exact=None) for one in objectives), state)


def placements_in(log: Path) -> int | None:
    """How many placements the space of a log has; None: too many to count, or no such log."""
    try:
        events = events_so_far(log)
        return count_placements(_space(events[0]["space"])) if events else None
    except (StorageError, KeyError, TypeError, ValueError):
        return None


def _space(described: Any) -> MemorySpace:
    """The space that :meth:`MemorySpace.describe` described."""
    return MemorySpace(**{name: value for name, value in described.items() if name != "settings"})


def _objectives(listed: Any) -> tuple[Objective, ...]:
    return tuple(
        replace(
            OBJECTIVES[one["name"]],
            direction=one["direction"],
            exact=(lambda placement: 0.0) if one["exact"] else None,
        )
        for one in listed
    )
