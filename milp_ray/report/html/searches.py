"""A user's search as its event log has it now, where the tables are behind: a run that goes on.

A log is only read: no lock is taken, nothing is mended, and an unfinished last line is ignored. The
base model is not needed. So the number of trainable parameters is known only where it is an
objective, and then its hypervolume is measured from an inferred point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from milp_ray.config.objectives import OBJECTIVES, Objective
from milp_ray.errors import StorageError
from milp_ray.memory.space import MemorySpace
from milp_ray.search.core.design import count_placements
from milp_ray.search.core.events import Event, events_so_far
from milp_ray.search.core.records import GIVEN, TRANSFER
from milp_ray.search.state import SearchState
from milp_ray.search.view import SearchView


@dataclass(frozen=True)
class LogFacts:
    """What an event log says beside what is in the tables.

    Attributes:
        ended: trials that were measured or failed.
        asked: trials that were proposed.
        notes: what was noted with the proposals, such as a surrogate that fell back to another.
        sources: how many trials each source proposed.
        teachers: how many finished searches this one was given, to learn from.
        learned: numbers of the trials that follow from these.
    """

    ended: int
    asked: int
    notes: tuple[str, ...]
    sources: Mapping[str, int]
    teachers: int = 0
    learned: tuple[int, ...] = ()


def facts_of(events: Sequence[Event]) -> LogFacts:
    """The facts of a log's events; a damaged batch counts as none."""
    asked, notes, sources = 0, list[str](), dict[str, int]()
    teachers, learned = 0, list[int]()
    for event in events:
        if event["event"] == "asked":
            batch, told, source = event.get("proposals"), event.get("notes"), str(event.get("source", ""))
            count = len(batch) if isinstance(batch, list) else 0
            learned += range(asked, asked + count) if source == TRANSFER else ()  # ids count up
            asked += count
            sources[source] = sources.get(source, 0) + count
            notes += [str(note) for note in told] if isinstance(told, list) else []
        elif event["event"] == "transferred":
            given = event.get("donors")
            teachers = len(given) if isinstance(given, list) else 0
    ended = sum(event["event"] in ("told", "failed") for event in events)
    return LogFacts(ended, asked, tuple(notes), sources, teachers, tuple(learned))


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


def is_surrogate(source: str) -> bool:
    """Whether proposals of a source are a model's: no initial design, list or transfer."""
    return source not in ("initial", GIVEN, TRANSFER)


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
