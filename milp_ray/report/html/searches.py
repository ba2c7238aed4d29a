"""What an event log says of a user's search beside what is in the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from milp_ray.search.core.events import Event
from milp_ray.search.core.records import GIVEN, TRANSFER


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


def is_surrogate(source: str) -> bool:
    """Whether proposals of a source are a model's: no initial design, list or transfer."""
    return source not in ("initial", GIVEN, TRANSFER)
