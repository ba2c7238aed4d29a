"""Where every trial of a run stands, from the moment a worker gets it to its outcome.

Only the ledger changes a trial's state (:class:`~milp_ray.trial.records.TrialState`)::

    WAITING -> RUNNING -> COMPLETE | FAILED      it ended: the event log has it
                       -> LOST -> WAITING        its worker is gone: it runs again
                               -> LOST           past its retries: whose fault that is shows later
                               -> FAILED         another trial got on: its workers died of it
                               -> ABANDONED      too many in a row were lost: the run ends
                       -> ABANDONED              the run stops: a resume runs it again

Waiting trials are in the :class:`~milp_ray.tune.proposals.queue.ProposalQueue`. The
:class:`~milp_ray.tune.workers.failures.FailurePolicy` decides about lost ones. An outcome goes to
the user's event log before anything else happens with it (docs/decisions.md, 4). The ledger knows
no Ray.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from milp_ray.config.objectives import OBJECTIVES
from milp_ray.trial.records import TrialCost, TrialReport, TrialRequest, TrialState
from milp_ray.tune.proposals.queue import ProposalQueue
from milp_ray.tune.workers.failures import Action, FailurePolicy, Loss

if TYPE_CHECKING:
    from milp_ray.search import Engine


class TrialListener(Protocol):
    """Is told how trials go: the progress display, the exported metrics.

    ``is_charged``: whether the trial lost a retry. ``cost``: None where unknown.
    """

    def on_trial_started(self, request: TrialRequest) -> None: ...
    def on_trial_requeued(self, request: TrialRequest, is_charged: bool) -> None: ...
    def on_trial_completed(
        self, request: TrialRequest, values: Mapping[str, float], cost: TrialCost | None
    ) -> None: ...
    def on_trial_failed(self, request: TrialRequest, reason: str, cost: TrialCost | None) -> None: ...


@dataclass
class _Entry:
    """A trial that was handed to a worker, and has not ended.

    Attributes:
        attempts: how often it was handed out.
        last_words: of its worker, which was lost.
        setup_error: why its worker could not be set up; the worker ends next.
        reason: why a group gave it up, whose ranks died too often.
    """

    state: TrialState = TrialState.WAITING
    attempts: int = 0
    last_words: str = ""
    setup_error: TrialReport | None = None
    reason: str = ""


class TrialLedger:
    """Takes trials from the queue, and outcomes to the engines. Each outcome counts once.

    Example:
        >>> from milp_ray.memory.space import MemorySpace
        >>> from milp_ray.search import Engine, Objective
        >>> space = MemorySpace(num_layers=4, max_loras=4, ranks=(8, 16))
        >>> objectives = [Objective("loss", "min")]
        >>> engine = Engine(space, objectives, surrogate="random", reference={"loss": 3.0})
        >>> queue = ProposalQueue({"u-1": engine}, trials=1, batch=1, workers=1)
        >>> ledger = TrialLedger({"u-1": engine}, queue, ("loss",), FailurePolicy(retries=0))
        >>> request = ledger.start(wait=10.0)
        >>> ledger.end(request, TrialReport.complete({"loss": 2.0}))
        >>> ledger.start(), ledger.is_over, engine.observations[0].values["loss"]
        (None, True, 2.0)
        >>> queue.stop()
        >>> queue.join()

    Args:
        engines: one per user, by alias.
        queue: ready requests of the same engines.
        objectives: names of the values that engines are told, in their order.
        policy: decides about lost workers.
        listeners: are told of every start and end.
        workers: how many trials run at once.
        notify: is told what is wrong with workers, for people.

    Attributes:
        error: why the run is to end, if it is; then no trial is started.
        is_over: whether :meth:`start` found that no trial runs and none will. While one runs, a
            lost one may come back.
        baselines_failed: users whose no-memory measurement failed, and why.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        queue: ProposalQueue,
        objectives: Sequence[str],
        policy: FailurePolicy[TrialRequest],
        listeners: Sequence[TrialListener] = (),
        workers: int = 1,
        notify: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._engines, self._queue, self._policy = engines, queue, policy
        self.objectives = tuple(objectives)
        self._listeners, self._workers, self._notify = tuple(listeners), workers, notify
        self._entries: dict[TrialRequest, _Entry] = {}
        self._running = 0
        self.error: Exception | None = None
        self.is_over = False
        self.baselines_failed: dict[str, str] = {}
        if any(engine.counts.told or engine.reference is not None for engine in engines.values()):
            policy.has_worked()

    def state_of(self, request: TrialRequest) -> TrialState:
        """The state of a trial that has not ended."""
        return self._entries[request].state if request in self._entries else TrialState.WAITING

    def start(self, wait: float = 0.0) -> TrialRequest | None:
        """WAITING to RUNNING: the next trial for a worker.

        Args:
            wait: seconds to wait for a proposal where no trial runs.

        Returns:
            None where none is ready, or none is to start now.
        """
        held_back = self._policy.held_back
        if self.error or (held_back and self._running + held_back >= self._workers):
            return None
        request = self._queue.take(wait=0.0 if self._running else wait)
        if request is None:
            # Decided once: the queue may run out right after it was asked.
            if not self._running and self._queue.exhausted:
                self.is_over = True
                self._fail_suspended(self._policy.settle())
            return None
        earlier = self._entries.get(request, _Entry())
        self._entries[request] = _Entry(TrialState.RUNNING, earlier.attempts + 1)
        self._running += 1
        self._policy.started(request)
        for listener in self._listeners:
            listener.on_trial_started(request)
        return request

    def report(self, request: TrialRequest, report: TrialReport) -> None:
        """A worker reports during a trial: a sign of life, or that it cannot be set up and ends."""
        if self.state_of(request) is not TrialState.RUNNING:
            return
        if report.state is TrialState.LOST:
            self._entries[request].setup_error = report
        else:
            self._policy.reported()

    def note_last_words(self, request: TrialRequest, last_words: str) -> None:
        """Note the last words of a trial's worker; :meth:`lose` is called next."""
        self._entries[request].last_words = last_words

    def end(self, request: TrialRequest, report: TrialReport) -> None:
        """RUNNING to COMPLETE or FAILED, or to ABANDONED where the run was stopped half way.

        Raises:
            MilpRayError: every trial would fail like this one; this one is abandoned.
            StorageError: the event log could not be written.
        """
        if self.state_of(request) is not TrialState.RUNNING:
            return
        self._running -= 1
        if not report.is_over:  # a set-up error is no error of the run where the run is stopped
            self._abandon(request)
            return
        if report.error is not None:
            self._abandon(request)
            raise report.error
        if report.workers_died:
            self._entries[request].reason = report.reason
            self._settle_loss(request, Loss(request, last_words=report.reason, past_retries=True))
            return
        self._fail_suspended(self._policy.got_on(request))
        if report.state is TrialState.FAILED:
            self._fail(request, report.reason, report.cost)
        else:
            self._complete(request, report)

    def lose(self, request: TrialRequest) -> None:
        """RUNNING to LOST, then to WAITING, FAILED or ABANDONED: the trial's worker is gone.

        Raises:
            MilpRayError: why the run ends.
        """
        if self.state_of(request) is not TrialState.RUNNING:
            return
        self._running -= 1
        entry = self._entries[request]
        if (setup := entry.setup_error) is not None:
            self._settle_loss(request, Loss(request, setup.error, setup.node))
        else:
            self._settle_loss(request, Loss(request, last_words=entry.last_words))

    def _settle_loss(self, request: TrialRequest, loss: Loss[TrialRequest]) -> None:
        self._entries[request].state = TrialState.LOST
        verdict = self._policy.lost(loss)
        if verdict.is_news and (loss.error is None or verdict.ends is None):
            self._notify(_loss_for_people(loss))
        if verdict.actions[request] is Action.RETRY:
            self._requeue(request, verdict.is_charged)
        elif request.is_baseline:  # it is in no log, and other trials may wait for it
            self._fail(request, self._died_too_often(request), None)
        # Otherwise it stays LOST until another trial gets on (end), or none is left (start).
        if verdict.ends is not None:
            for suspended in self._policy.settle():
                if not suspended.is_baseline:  # a baseline has failed before
                    self._abandon(suspended)
            raise verdict.ends

    def give_up(self, error: Exception) -> None:
        """End the run for this reason, unless it has one already: no more trials are started."""
        self.error = self.error or error
        self._queue.stop()

    def _complete(self, request: TrialRequest, report: TrialReport) -> None:
        # An engine computes exact objectives itself; of no memory they may have no value.
        names = [o for o in self.objectives if o in report.values or OBJECTIVES[o].exact is None]
        values = {name: float(report.values[name]) for name in names}
        if not all(math.isfinite(value) for value in values.values()):
            self._fail(request, "a measured value is not finite", report.cost)
            return
        engine, cost = self._engines[request.alias], self._whole_cost(request, report.cost)
        # An unmeasured metric is NaN, and no objective.
        by_user = {a: {n: found[n] for n in names if n in found} for a, found in report.by_user.items()}
        if request.is_baseline:
            engine.set_reference(values, _plain(cost), by_user)
        else:
            engine.tell(request.number, values, _plain(cost), by_user)
        self._close(request)
        for listener in self._listeners:
            listener.on_trial_completed(request, values, cost)

    def _fail(self, request: TrialRequest, reason: str, cost: TrialCost | None) -> None:
        cost = self._whole_cost(request, cost)
        if request.is_baseline:  # the reference is inferred instead, and a resume measures it again
            self.baselines_failed[request.alias] = reason
        else:
            self._engines[request.alias].fail(request.number, reason, _plain(cost))
        self._close(request)
        for listener in self._listeners:
            listener.on_trial_failed(request, reason, cost)

    def _close(self, request: TrialRequest) -> None:
        """The trial has its outcome: its user may be planned for again."""
        self._entries.pop(request, None)
        self._queue.complete(request)

    def _requeue(self, request: TrialRequest, is_charged: bool) -> None:
        self._entries[request].state = TrialState.WAITING
        self._queue.requeue(request)
        for listener in self._listeners:
            listener.on_trial_requeued(request, is_charged)

    def _abandon(self, request: TrialRequest) -> None:
        self._entries[request].state = TrialState.ABANDONED
        self._queue.abandon(request)

    def _fail_suspended(self, requests: Sequence[TrialRequest]) -> None:
        """Fail suspended trials: other trials got on, or there is nothing more to run."""
        for request in requests:
            if not request.is_baseline:
                self._fail(request, self._died_too_often(request), None)

    def _died_too_often(self, request: TrialRequest) -> str:
        if reason := self._entries[request].reason:
            return reason
        words = self._policy.last_words(request)
        why = f", the last one: {words}" if words else "; see tune.log"
        return f"the worker failed more often than ray.max_failures allows{why}"

    def _whole_cost(self, request: TrialRequest, cost: TrialCost | None) -> TrialCost | None:
        """The cost that a worker reports, with earlier attempts of this session, and the time."""
        if cost is None:
            return None
        attempts = self._entries[request].attempts - 1 + cost.attempts
        return dataclasses.replace(cost, attempts=attempts, ended=time.time())


def _plain(cost: TrialCost | None) -> dict[str, float | str] | None:
    """A cost as the event log keeps it."""
    return None if cost is None else cost.to_plain()


def _loss_for_people(loss: Loss[TrialRequest]) -> str:
    if loss.error is None:
        return f"a worker was lost: {loss.last_words}"
    where = f"node {loss.node}: " if loss.node else ""
    return f"{where}{loss.error.problems[0].fact}; its trials run elsewhere"
