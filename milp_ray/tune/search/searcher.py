"""The Ray Tune Searcher of a study: many users' engines behind one ``suggest`` (docs/decisions.md, 1).

It computes nothing: requests come from a :class:`~milp_ray.tune.proposals.queue.ProposalQueue`, outcomes go
to the engines' event logs before anything else happens with them. A trial's config is alias and numbers only,
since Tune writes it to several files and the dashboard verbatim.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from ray.tune.search import Searcher

from milp_ray.trial.records import TrialCost, TrialReport, TrialRequest, TrialState
from milp_ray.tune.proposals.queue import ProposalQueue
from milp_ray.tune.workers.failures import Losses

if TYPE_CHECKING:
    from milp_ray.search import Engine

# Tune sleeps a second and drops cached actors when `suggest` has nothing while no trial runs; waiting here
# instead keeps them, and a stop request is still seen within this time.
_IDLE_WAIT_SECONDS = 0.5


class Listener(Protocol):
    """Who wants to know how the study goes: the progress display, the exported metrics.

    ``charged``: whether the trial's retries are fewer now. ``cost``: None where the worker could not say.
    """

    def trial_started(self, request: TrialRequest) -> None: ...
    def trial_lost(self, request: TrialRequest, charged: bool) -> None: ...
    def trial_ended(
        self, request: TrialRequest, values: Mapping[str, float] | None, reason: str, cost: TrialCost | None
    ) -> None: ...


class StudySearcher(Searcher):  # type: ignore[misc]
    """Multiplexes users. Outcomes are told once; anything Tune repeats is ignored.

    Example:
        >>> from milp_ray.memory.space import MemorySpace
        >>> from milp_ray.search import Engine, Objective
        >>> space = MemorySpace(num_layers=4, max_loras=4, ranks=(8, 16))
        >>> engine = Engine(space, [Objective("loss", "min")], surrogate="random", reference={"loss": 3.0})
        >>> queue = ProposalQueue({"u-1": engine}, trials=1, batch=1, workers=1)
        >>> searcher = StudySearcher({"u-1": engine}, queue, ("loss",), lambda: False, listeners=[])
        >>> sorted(searcher.suggest("tune-1"))  # no text, no id: Tune writes it to files
        ['placement', 'trial', 'user']
        >>> queue.stop()
        >>> queue.join()

    Args:
        engines: one per user, by alias.
        queue: ready requests of the same engines.
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
        self._requests: dict[str, TrialRequest] = {}
        self.failure: Exception | None = None
        self.baselines_failed: dict[str, str] = {}
        self._workers = workers
        self._say = say
        self._losses = Losses(retries)
        if any(engine.counts.told or engine.reference is not None for engine in engines.values()):
            self._losses.ended()  # in an earlier session
        self._words: dict[str, str] = {}  # by trial: its worker's last ones, which was lost
        self._unfit: dict[str, TrialReport] = {}  # by trial: why its worker ends next
        self._attempts: Counter[TrialRequest] = Counter()

    def suggest(self, trial_id: str) -> dict[str, object] | str | None:
        """The next trial's config, None while none is ready, FINISHED when none will be."""
        if self._stopping() or self.failure:
            return Searcher.FINISHED  # type: ignore[no-any-return]
        held_back = self._losses.held_back
        if held_back and len(self._requests) + held_back >= self._workers:
            return None
        request = self._queue.take(wait=0.0 if self._requests else _IDLE_WAIT_SECONDS)
        if request is None:
            # While trials run, a lost one may come back.
            if over := self._queue.exhausted and not self._requests:
                self._guarded(self._write_off)
            return Searcher.FINISHED if over else None
        self._requests[trial_id] = request
        self._losses.given(request)
        for listener in self._listeners:
            listener.trial_started(request)
        self._attempts[request] += 1
        return request.to_config()

    def on_trial_result(self, trial_id: str, result: Mapping[str, object]) -> None:
        """Intermediate results are a sign of life, or say that the worker cannot work and ends now."""
        report = TrialReport.from_result(result)
        if report.state is TrialState.LOST:
            self._unfit[trial_id] = report
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
        request, unfit = self._requests.pop(trial_id, None), self._unfit.pop(trial_id, None)
        words = self._words.pop(trial_id, "")
        if request is None:
            return
        if unfit is not None and error:
            self._guarded(lambda: self._not_set_up(request, unfit))
        else:
            self._guarded(lambda: self._outcome(request, result, error, words))

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as failure:
            self.failure = self.failure or failure
            self._queue.stop()

    def _outcome(
        self, request: TrialRequest, result: Mapping[str, object] | None, error: bool, words: str
    ) -> None:
        if error or result is None:
            self._died(request, words)
            return
        report = TrialReport.from_result(result)
        if not report.is_over:
            self._queue.dropped(request.alias, request.number)  # stopped half way: a resume runs it again
        elif report.error is not None:
            self._queue.dropped(request.alias, request.number)
            raise report.error
        else:
            self._losses.ended()
            self._write_off()
            cost = self._cost(request, report)
            if report.state is TrialState.FAILED:
                self._failed(request, report.reason, cost)
            else:
                self._told(request, {name: float(report.values[name]) for name in self._objectives}, cost)

    def _cost(self, request: TrialRequest, report: TrialReport) -> TrialCost | None:
        """What a worker reports, with the attempts before it in this session."""
        if (cost := report.cost) is None:
            return None
        return dataclasses.replace(cost, attempts=self._attempts[request] - 1 + cost.attempts)

    def _not_set_up(self, request: TrialRequest, unfit: TrialReport) -> None:
        """A trial's worker could not be set up: the trial runs on another one."""
        node, error = unfit.node, unfit.error
        assert error is not None
        new = self._losses.unfit(request, node, error)
        self._again(request, charged=False)
        self._check()
        if new:
            self._say(f"{f'node {node}: ' if node else ''}{error.problems[0].fact}; its trials run elsewhere")

    def _died(self, request: TrialRequest, words: str) -> None:
        """A trial's worker died: it runs again, or has failed, which is told once it is its own fault."""
        again = self._losses.died(request, words)
        if words and self._losses.is_new(words):
            self._say(f"a worker was lost: {words}")
        if again:
            self._again(request, charged=True)
        elif request.is_baseline:  # stands in no log, and other trials may wait for it
            self._fail_lost(request)
        self._check()

    def _again(self, request: TrialRequest, charged: bool) -> None:
        self._queue.again(request)
        for listener in self._listeners:
            listener.trial_lost(request, charged)

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
        for request in self._losses.settled():
            if not request.is_baseline:
                self._fail_lost(request)

    def _fail_lost(self, request: TrialRequest) -> None:
        words = self._losses.last_words(request)
        why = f", the last one: {words}" if words else "; see tune.log"
        self._failed(request, f"the worker failed more often than ray.max_failures allows{why}", None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the event logs are the state (docs/decisions.md, 4)."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resumed run replays the event logs."""

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune pickles its searcher into snapshots that nobody reads

    def _told(self, request: TrialRequest, values: dict[str, float], cost: TrialCost | None) -> None:
        if not all(math.isfinite(value) for value in values.values()):
            self._failed(request, "a measured value is not finite", cost)
            return
        engine, noted = self._engines[request.alias], _plain(cost)
        if request.is_baseline:
            engine.set_reference(values, noted)
        else:
            engine.tell(request.number, values, noted)
        self._ended(request, values, "", cost)

    def _failed(self, request: TrialRequest, reason: str, cost: TrialCost | None) -> None:
        if request.is_baseline:  # the reference is inferred then, and a resume measures it again
            self.baselines_failed[request.alias] = reason
        else:
            self._engines[request.alias].fail(request.number, reason, _plain(cost))
        self._ended(request, None, reason, cost)

    def _ended(
        self, request: TrialRequest, values: Mapping[str, float] | None, reason: str, cost: TrialCost | None
    ) -> None:
        self._attempts.pop(request, None)
        self._queue.ended(request.alias, request.number)
        for listener in self._listeners:
            listener.trial_ended(request, values, reason, cost)


def _plain(cost: TrialCost | None) -> dict[str, float | str] | None:
    """A cost as the event log keeps it."""
    return None if cost is None else cost.to_plain()
