"""The Ray Tune Searcher of a study: many users' engines behind one ``suggest`` (docs/decisions.md, 1).

It computes nothing: tickets come from a :class:`~milp_ray.tune.proposals.queue.ProposalQueue`, outcomes go to
the engines' event logs before anything else happens with them. A trial's config is alias and numbers only,
since Tune writes it to several files and the dashboard verbatim.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from ray.tune.search import Searcher

from milp_ray.errors import from_plain
from milp_ray.tune.proposals.queue import ProposalQueue
from milp_ray.tune.proposals.records import BASELINE, Ticket
from milp_ray.tune.workers.failures import Losses

if TYPE_CHECKING:
    from milp_ray.search import Engine

# Tune sleeps a second and drops cached actors when `suggest` has nothing while no trial runs; waiting here
# instead keeps them, and a stop request is still seen within this time.
_IDLE_WAIT_SECONDS = 0.5


class Listener(Protocol):
    """Who wants to know how the study goes: the progress display, the exported metrics.

    ``charged``: whether the trial's retries are fewer now. ``cost``: what a trial reports beside its values,
    as far as it does: ``train_tokens``, ``train_seconds``, ``eval_seconds``, ``gpu_memory`` (bytes).
    """

    def trial_started(self, ticket: Ticket) -> None: ...
    def trial_lost(self, ticket: Ticket, charged: bool) -> None: ...
    def trial_ended(
        self, ticket: Ticket, values: Mapping[str, float] | None, reason: str, cost: Mapping[str, float]
    ) -> None: ...


_COSTS = ("train_tokens", "train_seconds", "eval_seconds", "gpu_memory")


class StudySearcher(Searcher):  # type: ignore[misc]
    """Multiplexes users. Outcomes are told once; anything Tune repeats is ignored.

    Args:
        engines: one per user, by alias.
        queue: ready tickets of the same engines.
        objectives: names of the measured values to tell, in the engines' order.
        stopping: whether the run was asked to stop.
        listeners: told of every start and end.
        retries: how often a trial is run again whose worker died. Tune's own retries take a worker that
            dies with two calls under way for two failures, and give the trial up at the second.
        workers: how many trials run at once.
        say: is told what is wrong with workers that cannot be set up.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        queue: ProposalQueue,
        objectives: tuple[str, ...],
        stopping: Callable[[], bool],
        listeners: Sequence[Listener],
        retries: int = 0,
        workers: int = 1,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        super().__init__(metric=list(objectives), mode=["min"] * len(objectives))
        self._engines = engines
        self._queue = queue
        self._objectives = objectives
        self._stopping = stopping
        self._listeners = tuple(listeners)
        self._tickets: dict[str, Ticket] = {}
        self.failure: Exception | None = None
        self.baselines_failed: dict[str, str] = {}
        self._workers = workers
        self._say = say
        self._losses = Losses(retries)
        if any(engine.counts.told or engine.reference is not None for engine in engines.values()):
            self._losses.ended()  # in an earlier session
        self._words: dict[str, str] = {}  # by trial: its worker's last ones, which was lost
        self._unfit: dict[str, tuple[str, str]] = {}  # by trial: its worker's node and error, which ends next

    def suggest(self, trial_id: str) -> dict[str, object] | str | None:
        """The next trial's config, None while none is ready, FINISHED when none will be."""
        if self._stopping() or self.failure:
            return Searcher.FINISHED  # type: ignore[no-any-return]
        held_back = self._losses.held_back
        if held_back and len(self._tickets) + held_back >= self._workers:
            return None
        ticket = self._queue.take(wait=0.0 if self._tickets else _IDLE_WAIT_SECONDS)
        if ticket is None:
            # While trials run, a lost one may come back.
            if over := self._queue.exhausted and not self._tickets:
                self._guarded(self._write_off)
            return Searcher.FINISHED if over else None
        self._tickets[trial_id] = ticket
        self._losses.given(ticket)
        for listener in self._listeners:
            listener.trial_started(ticket)
        return {"user": ticket.alias, "trial": ticket.number, "placement": ticket.placement.key}

    def on_trial_result(self, trial_id: str, result: Mapping[str, object]) -> None:
        """Intermediate results are a sign of life, or say that the worker cannot work and ends now."""
        if "unfit" in result:
            self._unfit[trial_id] = str(result["node"]), str(result["unfit"])
        else:
            self._losses.reported()

    def heard(self, trial_id: str, words: str) -> None:
        """The last words of a trial's worker, which was lost; the loss itself is told next."""
        self._words[trial_id] = words

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False
    ) -> None:
        """Tell the user's engine how the trial ended.

        Tune logs what is raised here and goes on. So an error (a full disk, a bug) is kept in ``failure``,
        which ends the run, and whoever started the run raises it.
        """
        ticket, unfit = self._tickets.pop(trial_id, None), self._unfit.pop(trial_id, None)
        words = self._words.pop(trial_id, "")
        if ticket is None:
            return
        if unfit is not None and error:
            self._guarded(lambda: self._not_set_up(ticket, *unfit))
        else:
            self._guarded(lambda: self._outcome(ticket, result, error, words))

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as failure:
            self.failure = self.failure or failure
            self._queue.stop()

    def _outcome(self, ticket: Ticket, result: Mapping[str, object] | None, error: bool, words: str) -> None:
        if error or result is None:
            self._died(ticket, words)
        elif not result.get("finished"):
            self._queue.dropped(ticket.alias, ticket.number)  # stopped half way: a resume runs it again
        elif result.get("fatal"):
            self._queue.dropped(ticket.alias, ticket.number)
            raise from_plain(json.loads(str(result["fatal"])))
        else:
            self._losses.ended()
            self._write_off()
            if result.get("reason"):
                self._failed(ticket, str(result["reason"]))
                return
            values = {name: float(result[name]) for name in self._objectives}  # type: ignore[arg-type]
            self._told(ticket, values, _cost(result))

    def _not_set_up(self, ticket: Ticket, node: str, unfit: str) -> None:
        """A trial's worker could not be set up: the trial runs on another one."""
        error = from_plain(json.loads(unfit))
        new = self._losses.unfit(ticket, node, error)
        self._again(ticket, charged=False)
        self._check()
        if new:
            self._say(f"{f'node {node}: ' if node else ''}{error.problems[0].fact}; its trials run elsewhere")

    def _died(self, ticket: Ticket, words: str) -> None:
        """A trial's worker died: it runs again, or has failed, which is told once it is its own fault."""
        again = self._losses.died(ticket, words)
        if words and self._losses.is_new(words):
            self._say(f"a worker was lost: {words}")
        if again:
            self._again(ticket, charged=True)
        elif ticket.number == BASELINE:  # stands in no log, and other trials may wait for it
            self._fail_lost(ticket)
        self._check()

    def _again(self, ticket: Ticket, charged: bool) -> None:
        self._queue.again(ticket)
        for listener in self._listeners:
            listener.trial_lost(ticket, charged)

    def _check(self) -> None:
        """End the run where losses in a row are the cluster's: none is told, a resume runs them again.

        Raises:
            MilpRayError: why.
        """
        if (verdict := self._losses.verdict) is None:
            return
        for lost in self._losses.settled():
            self._queue.dropped(lost.alias, lost.number)
        raise verdict

    def _write_off(self) -> None:
        """The workers live, or there is nothing more to run: what was lost before failed by itself."""
        for ticket in self._losses.settled():
            if ticket.number != BASELINE:
                self._fail_lost(ticket)

    def _fail_lost(self, ticket: Ticket) -> None:
        words = self._losses.last_words(ticket)
        why = f", the last one: {words}" if words else "; see tune.log"
        self._failed(ticket, f"the worker failed more often than ray.max_failures allows{why}")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the event logs are the state (docs/decisions.md, 4)."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resumed run replays the event logs."""

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune pickles its searcher into snapshots that nobody reads

    def _told(self, ticket: Ticket, values: dict[str, float], cost: Mapping[str, float]) -> None:
        if not all(math.isfinite(value) for value in values.values()):
            self._failed(ticket, "a measured value is not finite")
            return
        engine = self._engines[ticket.alias]
        if ticket.number == BASELINE:
            engine.set_reference(values)
        else:
            engine.tell(ticket.number, values)
        self._ended(ticket, values, "", cost)

    def _failed(self, ticket: Ticket, reason: str) -> None:
        if ticket.number == BASELINE:  # the reference is inferred then, and a resume measures it again
            self.baselines_failed[ticket.alias] = reason
        else:
            self._engines[ticket.alias].fail(ticket.number, reason)
        self._ended(ticket, None, reason, {})

    def _ended(
        self, ticket: Ticket, values: Mapping[str, float] | None, reason: str, cost: Mapping[str, float]
    ) -> None:
        self._queue.ended(ticket.alias, ticket.number)
        for listener in self._listeners:
            listener.trial_ended(ticket, values, reason, cost)


def _cost(result: Mapping[str, object]) -> dict[str, float]:
    return {name: float(value) for name in _COSTS if isinstance(value := result.get(name), int | float)}
