"""Tells trackers of a run while it goes on, and never makes the run wait.

Trials' ends only mark a search as changed. A thread per tracker reads its event log, which is the
truth, and sends what the tracker has not got. So a server that is away, a killed driver and a
resume are one case: what is missing is sent later. How far each search was sent is kept in the run
folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from milp_ray.errors import MilpRayError, own_words
from milp_ray.storage import make_folder
from milp_ray.tracking.interface import TrackedSearch, TrackedStudy, Tracker, without_credentials

if TYPE_CHECKING:
    from milp_ray.trial.records import TrialCost, TrialRequest

_RETRY_SECONDS = 30.0
_TOTALS_SECONDS = 10.0
_log = logging.getLogger(__name__)


class SentFile:
    """How far each search was sent to one tracker: a line for every time, the last one counts.

    Args:
        path: of the file; None keeps it in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._sent: dict[str, tuple[int, str]] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="ascii").splitlines():
                try:
                    alias, steps, digest = json.loads(line)
                except ValueError:  # cut short when its driver was killed
                    continue
                self._sent[alias] = (int(steps), str(digest))

    def steps(self, alias: str) -> int:
        """How many steps of a search were sent."""
        return self._sent.get(alias, (0, ""))[0]

    def is_new(self, search: TrackedSearch) -> bool:
        """Whether there is anything that was not sent."""
        return self._sent.get(search.alias) != self._state_of(search)

    def keep(self, search: TrackedSearch) -> None:
        """All of a search was sent."""
        self._sent[search.alias] = state = self._state_of(search)
        if self._path is not None:
            make_folder(self._path.parent)
            with self._path.open("a", encoding="ascii") as file:
                # A line break before and after it: an earlier line may have been cut short.
                file.write(f"\n{json.dumps([search.alias, *state])}\n")

    @staticmethod
    def _state_of(search: TrackedSearch) -> tuple[int, str]:
        words = json.dumps([dict(search.summary), search.is_over], sort_keys=True)
        return len(search.steps), hashlib.sha256(words.encode()).hexdigest()[:12]


class Follower:
    """Follows a run for one tracker. A listener of trials; a context manager.

    Args:
        name: of the tracker, for people.
        tracker: what is told.
        study: the run.
        aliases: all that is searched; those begun in earlier sessions are looked at first.
        read: a search as it is now; None where it has not begun.
        notify: is told, once, that the tracker is away.
        patience: seconds that the end of a run that is done waits for what is left to be sent; of
            one that was stopped, a tenth of it.
    """

    def __init__(
        self,
        name: str,
        tracker: Tracker,
        study: TrackedStudy,
        aliases: Iterable[str],
        read: Callable[[str], TrackedSearch | None],
        notify: Callable[[str], object],
        patience: float = 60.0,
    ) -> None:
        self._name, self._tracker, self._study, self._read = name, tracker, study, read
        self._notify, self._patience = notify, patience
        self._sent = SentFile(study.folder / f"{name}.sent" if study.folder is not None else None)
        self._changed: dict[str, None] = dict.fromkeys(aliases)
        self._searches: dict[str, tuple[int, int, bool]] = {}
        self._wake = threading.Condition()
        self._closing = self._is_done = self._begun = self._is_away = self._was_told = False
        self._told_totals = 0.0
        self._thread = threading.Thread(target=self._run, name=f"tracking-{name}", daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close(is_done=False)

    def changed(self, alias: str) -> None:
        """A search has something new."""
        with self._wake:
            self._changed[alias] = None
            self._wake.notify()

    def on_trial_started(self, request: TrialRequest) -> None:
        """Nothing is told of a trial before its end."""

    def on_trial_requeued(self, request: TrialRequest, is_charged: bool) -> None:
        """Nor that it runs again."""

    def on_trial_completed(
        self, request: TrialRequest, values: Mapping[str, float], cost: TrialCost | None
    ) -> None:
        """A trial was measured; its event log has it already."""
        self.changed(request.alias)

    def on_trial_failed(self, request: TrialRequest, reason: str, cost: TrialCost | None) -> None:
        """A trial failed."""
        self.changed(request.alias)

    def close(self, *, is_done: bool) -> None:
        """Send what is left, for a while; a second call does nothing."""
        with self._wake:
            self._is_done, self._closing = is_done, True
            self._wake.notify()
        if not self._thread.is_alive():
            return
        self._thread.join(self._patience if is_done else self._patience / 10)
        if self._thread.is_alive() or self._changed:
            self._notify(
                f"{self._name}: not all of the run was sent; a later `milp-ray resume` sends the rest"
            )

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._changed and not self._closing:
                    self._wake.wait()
                alias = next(iter(self._changed), None)
            if alias is None:
                break
            if not self._try(lambda alias=alias: self._send(alias)):  # type: ignore[misc]
                if self._closing:
                    break
                with self._wake:
                    self._wake.wait_for(lambda: self._closing, timeout=_RETRY_SECONDS)
        if self._begun and not self._is_away:
            self._try(self._end)

    def _send(self, alias: str) -> None:
        """Bring one search up to date; it stays marked as changed if that fails."""
        with self._wake:
            self._changed.pop(alias, None)  # whatever ends from now on marks it again
        try:
            search = self._read(alias)
            if search is None:
                return
            self._searches[alias] = (len(search.steps), search.failed, search.is_over)
            if self._sent.is_new(search):
                self._begin()
                self._tracker.send(search, min(self._sent.steps(alias), len(search.steps)))
                self._reached()
                self._sent.keep(search)
                if time.monotonic() - self._told_totals > _TOTALS_SECONDS:
                    self._totals()
        except BaseException:
            with self._wake:
                self._changed[alias] = None
            raise

    def _begin(self) -> None:
        if not self._begun:
            self._tracker.begin(self._study)
            self._begun = True

    def _totals(self) -> None:
        self._told_totals = time.monotonic()
        done, failed, over = (sum(found) for found in zip(*self._searches.values(), strict=True))
        metrics = {"trials_done": done, "trials_failed": failed, "searches_over": over}
        self._tracker.totals(done + failed, metrics)

    def _end(self) -> None:
        self._totals()
        self._tracker.close(is_done=self._is_done)

    def _try(self, act: Callable[[], None]) -> bool:
        """Whether it went well. People are told once that it did not."""
        try:
            act()
        except Exception as error:  # a client raises what it likes, and no study ends of it
            _log.debug("%s failed", self._name, exc_info=True)
            self._is_away = True
            if not self._was_told:
                self._was_told = True
                words = str(error) if isinstance(error, MilpRayError) else own_words(error, 300)
                self._notify(
                    f"{self._name}: cannot be told of the run ({type(error).__name__}: "
                    f"{without_credentials(words)}); the study goes on, and what is missing is sent later"
                )
            return False
        return True

    def _reached(self) -> None:
        """The tracker took something."""
        if self._is_away:
            self._is_away = False
            self._notify(f"{self._name}: is told of the run again")


def own_folder(folder: Path | None, name: str) -> Path | None:
    """A tracker's own folder within a run's, made if absent."""
    if folder is None:
        return None
    made = folder / name
    make_folder(made)
    return made


def set_defaults(**variables: str) -> None:
    """Variables that a client reads, where whoever started the run did not set them."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)
