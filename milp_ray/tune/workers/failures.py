"""What becomes of a trial whose worker was lost, and when the search gives up. No Ray here.

Two kinds of loss. A worker *dies* in the middle of a trial (killed, hung, broken): the trial may be what
kills it, so it runs again only ``retries`` times and has then failed. A worker is *unfit*: it could not be
set up (its GPU is still full of a predecessor, a mount comes late, a driver is broken), which is no trial's
fault, so the trial runs again, free of charge, on another one.

Either may be the cluster's own fault, so losses are counted in a row. Five end the run: nobody is charged,
and a resume goes on. Unfit workers are in a row until any worker reports anything; deaths until another
trial ends, since a trial that gets on may still die like the others. Until then it is open whose fault a
death was, and the trial is not told as failed. Several workers that start at the same time and are unfit are
one loss.

Where *every* worker of a run died alike, and no trial ever ended, no trial is what kills them: five of these
end the run as well, whatever retries are left, with the last words of the last one.

After an unfit worker one trial fewer runs for a while, or its node would be asked over and over: first for
two seconds, then for twice as long each time, a minute at most.
"""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from milp_ray.errors import ClusterError, MilpRayError, alike
from milp_ray.trial.records import TrialRequest

_MOST = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0  # seconds


def pause_after(times: int, first: float, longest: float) -> float:
    """Seconds to wait after so many faults in a row: twice as long each time; none before the first."""
    return min(first * 2.0 ** (times - 1), longest) if times else 0.0


@dataclass(frozen=True)
class _Loss:
    """One of a row: ``request`` of a trial past its retries, or ``error`` of an unfit worker."""

    request: TrialRequest | None = None
    error: MilpRayError | None = None


class Losses:
    """Counts them.

    Args:
        retries: how often a trial is run again whose worker died.
        clock: seconds, for the pauses.
    """

    def __init__(self, retries: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._retries = retries
        self._clock = clock
        self._deaths: Counter[TrialRequest] = Counter()
        self._words: dict[TrialRequest, str] = {}  # of the last worker that died in a trial
        self._said: set[str] = set()
        # Deaths before any trial ended; None: one did.
        self._first: list[tuple[TrialRequest, str]] | None = []
        self._row: list[_Loss] = []
        self._order = itertools.count()
        self._given: dict[TrialRequest, int] = {}
        self._counted = -1  # when the last unfit worker was counted, in that order
        self._pauses: list[float] = []  # when they end
        self._pause: Counter[str] = Counter()  # by node, how often
        self._known: set[tuple[str, ...]] = set()

    def given(self, request: TrialRequest) -> None:
        """A trial was handed out."""
        self._given[request] = next(self._order)

    def reported(self) -> None:
        """A worker gave a sign of life in its trial: workers can be set up."""
        if self._row:
            self._row = [loss for loss in self._row if loss.request is not None]

    def settled(self) -> list[TrialRequest]:
        """A trial has ended, or none is left: those whose workers died before have failed by themselves."""
        row, self._row = self._row, []
        return [loss.request for loss in row if loss.request is not None]

    def ended(self) -> None:
        """A trial ended: workers get through trials here."""
        self._first = None

    def is_new(self, words: str) -> bool:
        """Whether these are other last words than were told before, numbers aside."""
        same = _without_numbers(words)
        new = same not in self._said
        self._said.add(same)
        return new

    def last_words(self, request: TrialRequest) -> str:
        """Of the worker that died last in a trial; empty where they are not known."""
        return self._words.get(request, "")

    def died(self, request: TrialRequest, words: str = "") -> bool:
        """A worker died in a trial. True: it is to run again; False: it is past its retries (``settled``).

        ``words``: its last ones, see :mod:`milp_ray.tune.workers.last_words`.
        """
        self._words[request] = words
        if self._first is not None:
            self._first.append((request, words))
        if self._deaths[request] < self._retries:
            self._deaths[request] += 1
            return True
        self._row.append(_Loss(request=request))
        return False

    def unfit(self, request: TrialRequest, node: str, error: MilpRayError) -> bool:
        """A worker could not be set up; its trial is to run again. True: the user does not know of it yet."""
        if self._given.get(request, 0) > self._counted:
            self._counted = next(self._order)
            self._row.append(_Loss(error=error))
            self._pause[node] += 1
        self._pauses.append(self._clock() + pause_after(self._pause[node], _FIRST_PAUSE, _LONGEST_PAUSE))
        fault = node, *alike(error)
        new = fault not in self._known
        self._known.add(fault)
        return new

    @property
    def held_back(self) -> int:
        """How many trials fewer are to run now."""
        now = self._clock()
        self._pauses = [end for end in self._pauses if end > now]
        return len(self._pauses)

    @property
    def verdict(self) -> MilpRayError | None:
        """Why the run is to end: the last unfit worker's error where there is one; None: it goes on."""
        if (alike := self._all_alike()) is not None:
            return alike
        if len(self._row) < _MOST:
            return None
        errors = [loss.error for loss in self._row if loss.error is not None]
        if errors:
            return errors[-1]
        return ClusterError(
            f"{len(self._row)} trials in a row were lost to failing workers{self._last()}",
            expected="workers that live through a trial",
            remedy="look into tune/tune.log in the run folder; mend the cluster, then resume",
        )

    def _all_alike(self) -> MilpRayError | None:
        """The error that all workers so far stand for, if they died in the same way, in several trials."""
        deaths = self._first or []
        ways = {_without_numbers(words) for _, words in deaths}
        if len(deaths) < _MOST or len(ways) != 1 or len({request for request, _ in deaths}) < 2 or "" in ways:
            return None
        return ClusterError(
            f"all {len(deaths)} workers so far were lost in the same way: {deaths[-1][1]}",
            expected="workers that live through a trial",
            remedy="mend what they say (tune/tune.log in the run folder has more of it), then resume",
        )

    def _last(self) -> str:
        words = [self._words.get(loss.request, "") for loss in self._row if loss.request is not None]
        return f", the last one: {words[-1]}" if words and words[-1] else ""


def _without_numbers(words: str) -> str:
    """Equal for last words that differ in process ids and amounts alone."""
    return re.sub(r"[\d.]+", "#", words)
