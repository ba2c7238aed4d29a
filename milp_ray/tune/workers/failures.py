"""What becomes of work whose worker was lost, and when a run gives up.

One policy serves the search, where a task is a trial, a trial's group of ranks, and the final job.
It knows no Ray. It distinguishes two kinds of loss.

- A worker *dies* in the middle of a task: it was killed, hung, or broke. The task may be the cause.
  So the task runs again only ``retries`` times, and then it has failed.
- A worker *cannot be set up*, or meets a fault of its node or the storage: its predecessor's memory
  still fills the GPU, a mount comes late, a driver is broken. That is no task's fault. So the task
  runs again on another worker, and is not charged.

Either may be the cluster's fault. So losses in a row are counted, and ``limit`` of them end the
run. Then no task is charged, and a resume goes on. A set-up fault leaves the row when any worker
reports anything. A death past the retries leaves it when another task gets on, since a task that
reports may still die like the others. Where several workers that started together cannot be set up,
that is one loss.

Where *every* worker of a run died in the same way before any task ended, no task is the cause. Five
such deaths end the run too, whatever retries are left. Only the search knows how a worker died.

Four objects follow this policy:

=========================  ==============  ================  ========  ======================
where                      task            limit             suspends  decides about
=========================  ==============  ================  ========  ======================
``tune/search/run.py``     a trial         5                 yes       trials, the search
``tune/search/             a trial         none: the one     no        restarts in place; past
group_trial.py``                           above ends runs             them, the one above
``tune/final/              a user's train  retries + 1       no        users, the final job
coordinator.py``           or test
``tune/final/run.py``      none            retries + 1       no        Ray Train giving up
=========================  ==============  ================  ========  ======================
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from milp_ray.errors import ClusterError, MilpRayError, alike

T = TypeVar("T", bound=Hashable)

_ALL_ALIKE = 5  # deaths in the same way, before any task ended, that end a run


class Action(StrEnum):
    """What is done with a task whose worker was lost.

    Attributes:
        RETRY: it runs again.
        SUSPEND: it is past its retries, and waits: once another task gets on, the fault is its own.
        FAIL: it has failed.
    """

    RETRY = "retry"
    SUSPEND = "suspend"
    FAIL = "fail"


@dataclass(frozen=True)
class Loss(Generic[T]):
    """A worker that was lost.

    Attributes:
        task: the worker's task; None: it had none yet.
        error: why it could not be set up, or the fault of its node or the storage; None: it died.
        node: the address of its node, where known.
        last_words: why it died, see :mod:`milp_ray.tune.workers.last_words`.
        past_retries: whether the task's retries were used up where the worker was, as in a group.
    """

    task: T | None = None
    error: MilpRayError | None = None
    node: str = ""
    last_words: str = ""
    past_retries: bool = False


@dataclass(frozen=True)
class Verdict(Generic[T]):
    """What follows from a loss.

    Attributes:
        actions: what is done with the tasks of the lost workers.
        is_charged: whether the loss cost a task a retry.
        is_news: whether people have not been told of such a loss yet.
        ends: why the whole run ends, if it does.
    """

    actions: Mapping[T, Action] = field(default_factory=dict)
    is_charged: bool = False
    is_news: bool = False
    ends: MilpRayError | None = None


@dataclass(frozen=True)
class Pauses:
    """How long to wait after a set-up fault.

    Attributes:
        first: seconds after the first fault; each further one doubles them.
        longest: seconds at most.
    """

    first: float
    longest: float

    def after(self, times: int) -> float:
        """Seconds to wait after so many faults in a row; none before the first."""
        return min(self.first * 2.0 ** (times - 1), self.longest) if times else 0.0


class FailurePolicy(Generic[T]):
    """Decides about lost workers. Tasks are any hashable values.

    Example:
        >>> policy = FailurePolicy[str](retries=1)
        >>> policy.lost(Loss("a")).actions, policy.lost(Loss("a")).actions
        ({'a': <Action.RETRY: 'retry'>}, {'a': <Action.SUSPEND: 'suspend'>})
        >>> policy.got_on("b")  # another task ended: that one failed by itself
        ['a']

    Args:
        retries: how often a task runs again whose worker died.
        limit: how many losses in a row end the run.
        suspends: whether a task past its retries waits until another task gets on. False where
            tasks on their last try run alone, so that a loss is certainly the task's.
        pauses: after set-up faults; without them a broken node would be asked over and over.
        given_up: makes the error of a run that ends after so many deaths in a row, with the last
            words.
        clock: seconds, increasing.
    """

    def __init__(
        self,
        retries: int,
        *,
        limit: int = 5,
        suspends: bool = True,
        pauses: Pauses = Pauses(2.0, 60.0),
        given_up: Callable[[int, str], MilpRayError] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._retries, self._limit, self._suspends = retries, limit, suspends
        self._pauses, self._given_up, self._clock = pauses, given_up or _trials_lost, clock
        self._deaths: Counter[T] = Counter()  # since a task last got on
        self._last_words: dict[T, str] = {}  # of the worker that died last in a task
        self._row: list[Loss[T]] = []
        self._early_deaths: list[Loss[T]] | None = []  # before any task ended; None: one did
        self._told: set[tuple[str, ...]] = set()
        # Which workers started together: tasks and counted set-up faults in one order of events.
        self._order = itertools.count()
        self._started: dict[T, int] = {}
        self._counted = -1
        self._faults: Counter[str] = Counter()  # by node
        self._pause_ends: list[float] = []

    def started(self, task: T) -> None:
        """A task was handed to a worker."""
        self._started[task] = next(self._order)

    def reported(self) -> None:
        """A worker gave a sign of life in its task: workers can be set up."""
        if self._row:
            self._row = [loss for loss in self._row if loss.error is None]

    def got_on(self, task: T) -> list[T]:
        """A task ended, or got on: its deaths so far no longer count.

        It also shows that workers get through tasks on this cluster.

        Returns:
            The suspended tasks: they have failed by themselves; see :meth:`settle`.
        """
        self._early_deaths = None
        self._deaths.pop(task, None)
        return self.settle()

    def settle(self) -> list[T]:
        """End the row of losses; the suspended tasks in it, which the caller decides about."""
        row, self._row = self._row, []
        return [loss.task for loss in row if loss.error is None and loss.task is not None]

    def has_worked(self) -> None:
        """In an earlier session tasks ended, so workers get through tasks on this cluster."""
        self._early_deaths = None

    def lost(self, *losses: Loss[T]) -> Verdict[T]:
        """Workers were lost; those that were lost together are one call, and one loss in the row.

        A loss without a task and without an error is a worker's that died before it had a task.
        """
        faults = [loss for loss in losses if loss.error is not None]
        uncharged = faults or [loss for loss in losses if loss.task is None]
        if uncharged:
            self._count_in_row(uncharged[-1])
        actions = {loss.task: self._decide(loss) for loss in losses if loss.task is not None}
        return Verdict(
            actions,
            is_charged=any(loss.task is not None and loss.error is None for loss in losses),
            is_news=bool(losses) and self._is_news((faults or losses)[-1]),
            ends=self._why_it_ends(),
        )

    def deaths(self, task: T) -> int:
        """How many workers have died in a task since it last got on."""
        return self._deaths[task]

    def is_past_retries(self, task: T) -> bool:
        """Whether more workers have died in a task since it last got on than it has retries."""
        return self._deaths[task] > self._retries

    def is_last_try(self, task: T) -> bool:
        """Whether one more death is past the retries."""
        return 0 < self._deaths[task] == self._retries

    def last_words(self, task: T) -> str:
        """The last words of the worker that died last in a task; empty where unknown."""
        return self._last_words.get(task, "")

    @property
    def held_back(self) -> int:
        """How many workers fewer may start now: one for each recent set-up fault.

        So a broken node is not asked over and over. Each fault of a node holds a worker back for
        twice as long as the fault before.
        """
        now = self._clock()
        self._pause_ends = [end for end in self._pause_ends if end > now]
        return len(self._pause_ends)

    @property
    def pause(self) -> float:
        """Seconds that workers that start together wait before they start again."""
        return self._pauses.after(len(self._row))

    def _decide(self, loss: Loss[T]) -> Action:
        """Decide about the task of a loss."""
        assert loss.task is not None
        if loss.error is not None:
            self._pause_ends.append(self._clock() + self._pauses.after(self._faults[loss.node]))
            return Action.RETRY
        self._last_words[loss.task] = loss.last_words
        if self._early_deaths is not None:
            self._early_deaths.append(loss)
        self._deaths[loss.task] += 1
        if self._deaths[loss.task] <= self._retries and not loss.past_retries:
            return Action.RETRY
        if not self._suspends:
            return Action.FAIL
        self._row.append(loss)
        return Action.SUSPEND

    def _count_in_row(self, loss: Loss[T]) -> None:
        """Count a loss that is no task's fault, once for workers that started together."""
        # Tasks of which nobody says when they started did not start together.
        if loss.task is None or self._started.get(loss.task, math.inf) > self._counted:
            self._counted = next(self._order)
            self._row.append(loss)
            self._faults[loss.node] += 1

    def _is_news(self, loss: Loss[T]) -> bool:
        """Whether people have not been told of a like loss; amounts and process ids aside."""
        if loss.error is not None:
            kind: tuple[str, ...] = (loss.node, *alike(loss.error))
        elif loss.last_words:
            kind = (_without_numbers(loss.last_words),)
        else:
            return False
        is_new = kind not in self._told
        self._told.add(kind)
        return is_new

    def _why_it_ends(self) -> MilpRayError | None:
        """Why the run ends, which is the last fault of the row if any; None: it goes on."""
        if (died_alike := self._all_died_alike()) is not None:
            return died_alike
        if len(self._row) < self._limit:
            return None
        errors = [loss.error for loss in self._row if loss.error is not None]
        return errors[-1] if errors else self._given_up(len(self._row), self._row[-1].last_words)

    def _all_died_alike(self) -> MilpRayError | None:
        """The error of a run whose workers all died alike, in several tasks; else None."""
        deaths = self._early_deaths or []
        ways = {_without_numbers(loss.last_words) for loss in deaths}
        if len(deaths) < _ALL_ALIKE or len(ways) != 1 or "" in ways or len({d.task for d in deaths}) < 2:
            return None
        return ClusterError(
            f"all {len(deaths)} workers so far were lost in the same way: {deaths[-1].last_words}",
            expected="workers that live through a trial",
            remedy="mend what they say (tune/tune.log in the run folder has more of it), then resume",
        )


def _trials_lost(times: int, last_words: str) -> ClusterError:
    last = f", the last one: {last_words}" if last_words else ""
    return ClusterError(
        f"{times} trials in a row were lost to failing workers{last}",
        expected="workers that live through a trial",
        remedy="look into tune/tune.log in the run folder; mend the cluster, then resume",
    )


def _without_numbers(words: str) -> str:
    """Last words without process ids and amounts, so that like ones are equal."""
    return re.sub(r"[\d.]+", "#", words)
