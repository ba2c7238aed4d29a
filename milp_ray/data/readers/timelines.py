"""Texts and samples of many lines or rows, put in time order user by user.

For formats in which a user's texts are spread over a file. Where the source has times, they decide;
texts of one moment, and all of a source without times, stay in the order of the file.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from milp_ray.data.readers.strict import Fault
from milp_ray.data.records import Sample, UserRecord

NO_HISTORY = "no history"
NO_SAMPLES = "no samples"

_NEWEST = 1e11  # seconds: the year 5138; numbers above are milliseconds
_TIME = "a time in ISO 8601 (2024-05-01T12:30:00Z), or in seconds or milliseconds since 1970"


@dataclass(frozen=True, slots=True)
class Moment:
    """What a user wrote, or took part in, at one time.

    Attributes:
        time: seconds since 1970; None where the source has none.
        texts: for the history, oldest first.
        samples: each with ``n_hist`` counted from the first of ``texts``.
    """

    time: float | None
    texts: tuple[str, ...]
    samples: tuple[Sample, ...] = ()


@dataclass(slots=True)
class Timelines:
    """Moments by user id. ``profiles``: of some users, by id."""

    profiles: dict[str, Mapping[str, str]] = field(default_factory=dict)
    _moments: dict[str, list[Moment]] = field(default_factory=dict)

    def add(self, user_id: str, moment: Moment) -> None:
        """Note what a user did; users come out in the order in which they came first."""
        self._moments.setdefault(user_id, []).append(moment)

    def ids(self) -> set[str]:
        """Who did anything."""
        return set(self._moments)

    def users(self) -> tuple[tuple[UserRecord, ...], dict[str, int]]:
        """The users with a history and samples, and how many have none, by reason."""
        users: list[UserRecord] = []
        skipped: Counter[str] = Counter()
        for user_id, moments in self._moments.items():
            history, samples = _told(in_order(moments))
            if not history or not samples:
                skipped[NO_SAMPLES if history else NO_HISTORY] += 1
            else:
                users.append(UserRecord(user_id, history, samples, self.profiles.get(user_id)))
        return tuple(users), dict(skipped)


def in_order(moments: Sequence[Moment]) -> list[Moment]:
    """By time where all have one, else as they are."""
    if any(moment.time is None for moment in moments):
        return list(moments)
    return sorted(moments, key=lambda moment: moment.time or 0.0)


def seconds(value: object, name: str) -> float | None:
    """A moment as seconds since 1970; None for null and blank. Times without a zone are UTC.

    Raises:
        Fault: it is no time.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    found = _seconds(value)
    if found is None or not abs(found) < 1e15:
        raise Fault(f"{name} is no time", _TIME, "convert it")
    return found / 1000 if abs(found) > _NEWEST else found


def _seconds(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, datetime.datetime):
        return _of(value)
    if isinstance(value, datetime.date):
        return _of(datetime.datetime(value.year, value.month, value.day))
    if not isinstance(value, str):
        return None
    text = value.strip()
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return _of(datetime.datetime.fromisoformat(text))
    except ValueError:
        return None


def _of(moment: datetime.datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _told(moments: Sequence[Moment]) -> tuple[tuple[str, ...], tuple[Sample, ...]]:
    history: list[str] = []
    samples: list[Sample] = []
    for moment in moments:
        before = len(history)
        samples += [replace(sample, n_hist=before + (sample.n_hist or 0)) for sample in moment.samples]
        history += moment.texts
    return tuple(history), tuple(samples)
