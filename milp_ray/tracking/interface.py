"""What a tracker is told, and what it must be able to do.

The study is a tracker's parent run, and each search a child of it. A search is told as a series
with a step per measured trial, in the order in which they ended, and a summary. A tracker may raise
whatever its client raises: the follower tells it once, and tries again.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from milp_ray.errors import Problem
from milp_ray.storage import is_url

if TYPE_CHECKING:
    from milp_ray.config.models import Study

Value = float | int | str
T = TypeVar("T")

# The module of each tracker's client. Names are those of `tracking` in a study, and of the extras.
CLIENTS = {"mlflow": "mlflow", "tensorboard": "tensorboardX", "wandb": "wandb"}
_CREDENTIALS = re.compile(r"//[^/@\s]+@")


@dataclass(frozen=True)
class TrackedStudy:
    """A run, as its parent in a tracker.

    Attributes:
        name: of the study.
        digest: tells the run from every other, also of the same name.
        settings: what it searches and with which budget, by dotted names; no paths.
        folder: where a tracker may keep files of its own; None of a run at a URL.
    """

    name: str
    digest: str
    settings: Mapping[str, Value]
    folder: Path | None


@dataclass(frozen=True)
class Step:
    """One measured trial. ``at``: when it ended, in seconds since 1970."""

    at: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrackedSearch:
    """One search as it is now.

    Attributes:
        alias: of the user, or the population's name.
        steps: one per measured trial; they never change, and only get more.
        summary: what it has come to, by name.
        is_over: whether no trial of it is to come.
        failed: how many trials failed.
    """

    alias: str
    steps: tuple[Step, ...]
    summary: Mapping[str, Value]
    is_over: bool
    failed: int = 0

    def numbers(self) -> dict[str, float]:
        """What of the summary is a number."""
        return {name: value for name, value in self.summary.items() if not isinstance(value, str)}

    def words(self) -> dict[str, str]:
        """What of it is none."""
        return {name: value for name, value in self.summary.items() if isinstance(value, str)}


class Tracker(Protocol):
    """A tool that shows runs. Every method may raise; all are called by one thread."""

    def begin(self, study: TrackedStudy) -> None:
        """Find the parent run of an earlier session, or make it."""
        ...

    def send(self, search: TrackedSearch, first: int) -> None:
        """Tell a search's steps from index ``first`` on, and its summary.

        What was sent already may be sent again, when a session was killed: it must not count twice.
        """
        ...

    def totals(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell how far the whole study is, after ``step`` trials."""
        ...

    def close(self, *, is_done: bool) -> None:
        """End the parent run; ``is_done``: whether the study is."""
        ...


class OpenRuns(Generic[T]):
    """Children that are open in this process; the one longest idle is closed for another.

    Args:
        most: how many are open at once.
        close: ends one.
    """

    def __init__(self, most: int, close: Callable[[T], object]) -> None:
        self._most, self._close = most, close
        self._open: OrderedDict[str, T] = OrderedDict()

    def get(self, alias: str, make: Callable[[], T]) -> T:
        """A search's open child, made where there is none."""
        if alias not in self._open:
            while len(self._open) >= self._most:
                self._close(self._open.popitem(last=False)[1])
            self._open[alias] = make()
        self._open.move_to_end(alias)
        return self._open[alias]

    def end(self, alias: str) -> None:
        """Close one, if it is open."""
        if (found := self._open.pop(alias, None)) is not None:
            self._close(found)

    def end_all(self) -> None:
        """Close all."""
        for alias in list(self._open):
            self.end(alias)


def tracking_faults(study: Study) -> list[Problem]:
    """Why a study cannot be tracked as it asks to be; nothing where it can."""
    found = [
        Problem(
            "tracking",
            f"names {name}, whose client is not installed",
            f"the extra {name}",
            f'pip install "milp_ray[{name}]", or take it out of tracking',
        )
        for name in study.tracking
        if find_spec(CLIENTS[name]) is None
    ]
    if "tensorboard" in study.tracking and is_url(study.storage.path):
        found.append(
            Problem(
                "tracking",
                "names tensorboard, which writes files, and the run is at a URL",
                "a storage.path on a file system",
                "take tensorboard out of tracking",
            )
        )
    return found


def without_credentials(text: str) -> str:
    """A client's words without the name and password of an address."""
    return _CREDENTIALS.sub("//…@", text)
