"""The ask/tell engine of one search: proposes memory configurations, takes in what they measured.

Usable without Ray and without a model. Its state is an append-only event log, which is on disk
before anything is acted on; an engine on an existing log continues it, and proposes what it would
have proposed without the break: random numbers derive from the seed and the number of events alone.
All methods may be called from any thread; a proposal being computed blocks neither ``tell`` nor
``fail``.

Where trials run, and for which user, is *not* covered here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence

from milp_ray.config.objectives import Objective
from milp_ray.errors import SearchError
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.space import MemorySpace
from milp_ray.search.core.design import count_placements
from milp_ray.search.core.events import EventLog
from milp_ray.search.core.local_search import LocalSearch
from milp_ray.search.core.objectives import (
    checked_objectives,
    checked_values,
    exact_values,
    whole_number,
)
from milp_ray.search.core.plan import Plan
from milp_ray.search.core.records import ByUser, Candidates, Cost, EngineSettings, Proposal
from milp_ray.search.core.reference import checked_reference
from milp_ray.search.core.transfer_data import TransferData, event_of
from milp_ray.search.propose import propose
from milp_ray.search.state import SearchState, asked_event, created_event, same_values
from milp_ray.search.surrogates import Sampler, make_surrogate
from milp_ray.search.view import SearchView

_log = logging.getLogger(__name__)

_REASON_LENGTH = 500
_ROUNDS = 8  # plans of one ask that may turn out stale because other threads accepted theirs meanwhile


class Engine(SearchView):
    """One search, and what changes it; :class:`~milp_ray.search.view.SearchView` is what it shows.

    Example:
        >>> space = MemorySpace(num_layers=4, max_loras=4, ranks=(8, 16))
        >>> objectives = [Objective("loss", "min"), Objective("rouge_l", "max")]
        >>> engine = Engine(space, objectives, initial=4, batch=2, surrogate="random", seed=1)
        >>> for proposal in engine.ask():  # a placement a trial
        ...     layers = len(proposal.placement)
        ...     values = {"loss": 3.0 - 0.1 * layers, "rouge_l": 0.1 + 0.01 * proposal.id}
        ...     engine.tell(proposal.id, values)
        >>> [seen.values["rouge_l"] for seen in engine.front()]
        [0.1, 0.11]

    Args:
        space: where to search.
        objectives: what is optimised, at least one of them measured.
        initial: proposals of the space-filling initial design, before a model leads.
        batch: most proposals from one fit, and what :meth:`ask` gives by default.
        surrogate: a registered name, see :func:`milp_ray.search.surrogates.surrogate_names`.
        surrogate_options: keyword arguments of the surrogate's class.
        outcome: how values are scaled for the model, ``standardize`` or ``copula``.
        search: effort of the acquisition's local search.
        seed: any integer; all randomness derives from it.
        reference: the no-memory measurement by name (exact objectives may be left out); None:
            inferred, or given later by :meth:`set_reference`. See
            :mod:`milp_ray.search.core.reference`.
        trials: most proposals ever made; None: as many as asked for.
        points: configurations to propose before all others, as Ray Tune's ``points_to_evaluate``;
            they count among ``initial``.
        log: path of the event log; an existing one is continued. None keeps it in memory.

    Raises:
        SearchError: an argument is wrong, or the log is that of another search.
        StorageError: the log cannot be read or written, or is damaged. A last line that was cut
            short while it was written is removed and reported in :attr:`notes`.
    """

    def __init__(
        self,
        space: MemorySpace,
        objectives: Sequence[Objective],
        *,
        initial: int = 20,
        batch: int = 4,
        surrogate: str = "saas",
        surrogate_options: Mapping[str, object] | None = None,
        outcome: str = "standardize",
        search: LocalSearch | None = None,
        seed: int = 0,
        reference: Mapping[str, float] | None = None,
        trials: int | None = None,
        points: Sequence[MemoryConfig] = (),
        log: str | os.PathLike[str] | None = None,
    ) -> None:
        checked = checked_objectives(objectives)
        self._initial = whole_number(initial, "initial", 0)
        self._batch = whole_number(batch, "batch", 1)
        self._trials = None if trials is None else whole_number(trials, "trials", 0)
        self._seed = whole_number(seed, "seed", None)
        self._surrogate, self._options = surrogate, dict(surrogate_options or {})
        self._model_free = isinstance(make_surrogate(surrogate, self._options), Sampler)
        if outcome not in ("standardize", "copula"):
            raise SearchError(
                "no such outcome transform", where="search.outcome", expected="standardize or copula"
            )
        self._outcome = outcome
        self._points = tuple(points)
        for point in self._points:
            space.validate(point)
        self._search = search or LocalSearch()
        self._asking = threading.Lock()
        self._spent = ""
        self._placements: int | None = None
        self._events = EventLog(log)
        super().__init__(space, checked, SearchState(space, checked, self._seed, self._events.path))
        for event in self._events.events:
            self._state.apply(event)
        self._notes = [self._events.repaired] if self._events.repaired else []
        if self._events.repaired:
            _log.warning("%s: %s", self._events.path, self._events.repaired)
        if not self._events.events:
            self._happen(created_event(space, checked, self._seed))
        if reference is not None:
            self.set_reference(reference)

    @property
    def log_size(self) -> int:
        """Bytes of the event log's file so far; 0 where it is kept in memory."""
        return self._events.size

    def ask(self, k: int | None = None) -> list[Proposal]:
        """``k`` new proposals (default: ``batch``), or fewer: :attr:`finished` says why.

        Proposals that are pending already, as after a resume, are not given again: see
        :attr:`pending`.

        Raises:
            SearchError: k is not a whole number from 1 on.
            StorageError: the log cannot be written.
        """
        wanted = self._batch if k is None else whole_number(k, "k", 1)
        result: list[Proposal] = []
        with self._asking:
            idle = 0
            while len(result) < wanted and not self.finished and idle < _ROUNDS:
                plan = self.plan(wanted - len(result))
                fresh = self.accept(plan, propose(plan))
                idle = 0 if fresh else idle + 1
                result += fresh
        return result

    def plan(self, k: int | None = None) -> Plan:
        """A snapshot from which up to ``k`` candidates are computed elsewhere, without a lock.

        Then :meth:`accept` them. A plan covers at most one batch, and never the initial design and
        a model at once, so there may be fewer candidates.
        """
        wanted = self._batch if k is None else whole_number(k, "k", 1)
        with self._lock:
            state = self._state
            if self._trials is not None:
                wanted = min(wanted, max(0, self._trials - len(state.proposals)))
            initial = self._initial - len(state.proposals)
            given = self._given_points()
            if given:
                wanted = min(wanted, len(given))
            elif initial > 0:
                wanted = min(wanted, initial)
            return Plan(
                space=self._space,
                objectives=self._objectives,
                surrogate=self._surrogate,
                options=dict(self._options),
                search=self._search,
                count=min(wanted, self._batch) if initial <= 0 else wanted,
                # Without any measurement there is nothing to fit: the design goes on.
                initial=bool(given) or initial > 0 or (not state.observations and not self._model_free),
                given=given,
                design_seed=self._derived("design"),
                seed=self._derived(f"events {state.events}"),
                events=state.events,
                observed=tuple(seen.config for seen in state.observations.values()),
                maximized=tuple(self._maximized()),
                pending=tuple(proposal.config for proposal in state.pending.values()),
                seen=frozenset(state.keys),
                reference=self._given(),
                outcome=self._outcome,
                transfer_data=state.transfer_data,
                noted=frozenset(state.notes),
            )

    def accept(self, plan: Plan, configs: Sequence[MemoryConfig]) -> list[Proposal]:
        """Turn a plan's candidates into proposals with ids, but for what was proposed meanwhile.

        Raises:
            SearchError: the plan is not from this search.
            SpaceError: a configuration is not of the space.
            StorageError: the log cannot be written; nothing was accepted then.
        """
        if plan.design_seed != self._derived("design"):
            raise SearchError("the plan is that of another search", expected="a plan of this engine")
        with self._lock:
            fresh: list[MemoryConfig] = []
            keys = {*self._state.keys, ""}
            for config in configs:
                self._space.validate(config)
                key = self._space.placement(config).key
                if key not in keys:
                    keys.add(key)
                    fresh.append(config)
            if self._trials is not None:
                fresh = fresh[: max(0, self._trials - len(self._state.proposals))]
            if not configs and plan.count > 0 and plan.seen == self._state.keys:
                self._spent = "no placement is left that was not tried"
            if not fresh:
                return []
            given = configs if isinstance(configs, Candidates) else Candidates(configs, plan.surrogate)
            first = len(self._state.proposals)
            self._happen(asked_event(first, fresh, self._space, given.source, given.notes))
            for note in given.notes:
                _log.warning("%s", note)
            return self._state.proposals[first:]

    def tell(
        self,
        id: int,
        values: Mapping[str, float],
        cost: Cost | None = None,
        by_user: ByUser | None = None,
    ) -> None:
        """Report what a proposal measured, every measured objective by name, in its own units.

        Exact objectives may be left out. Telling the same again changes nothing. ``cost``: what
        measuring took, by name; ``by_user``: of a mean over users, the values of each. Both are
        kept for people; no proposal depends on them.

        Raises:
            SearchError: unknown id, a missing or unknown name, a value that is not a finite number,
                or the proposal has ended otherwise already.
            StorageError: the log cannot be written; the proposal is still pending then.
        """
        with self._lock:
            proposal = self._state.proposal(id)
            exact = exact_values(self._objectives, proposal.placement)
            checked = checked_values(self._objectives, values, exact)
            if id in self._state.observations:
                if not same_values(self._state.observations[id].values, checked):
                    raise SearchError(
                        f"proposal {id} was told before with other values", remedy="tell every trial once"
                    )
                return
            if id in self._state.failures:
                raise SearchError(
                    f"proposal {id} was reported as failed before",
                    remedy="tell or fail every trial, not both",
                )
            self._happen({"event": "told", "id": proposal.id, "values": checked, **_noted(cost, by_user)})

    def fail(self, id: int, reason: str, cost: Cost | None = None) -> None:
        """Report that a proposal ended without a measurement.

        Its placement is not proposed again, and it does not enter the model: why it failed says
        little about its neighbours. Reporting a failure again changes nothing, the first reason
        stays.

        Args:
            id: of the proposal.
            reason: shown to people; must not contain a user's text. Cut at 500 characters.
            cost: as in :meth:`tell`.

        Raises:
            SearchError: unknown id, or the proposal was told.
            StorageError: the log cannot be written; the proposal is still pending then.
        """
        with self._lock:
            proposal = self._state.proposal(id)
            if id in self._state.observations:
                raise SearchError(
                    f"proposal {id} was told before", remedy="tell or fail every trial, not both"
                )
            if id not in self._state.failures:
                event = {"event": "failed", "id": proposal.id, "reason": str(reason)[:_REASON_LENGTH]}
                self._happen(event | _noted(cost))

    def set_reference(
        self, values: Mapping[str, float], cost: Cost | None = None, by_user: ByUser | None = None
    ) -> None:
        """Give the no-memory measurement, once; the same values again change nothing.

        ``cost``, ``by_user``: as in :meth:`tell`.

        Raises:
            SearchError: a measured objective is missing, a name is unknown, a value is not finite,
                or other values were given before.
            StorageError: the log cannot be written.
        """
        checked = checked_reference(self._objectives, values)
        with self._lock:
            if self._state.reference is None:
                self._happen({"event": "reference", "values": checked, **_noted(cost, by_user)})
            elif not same_values(self._state.reference, checked):
                raise SearchError(
                    "the search has another reference already",
                    remedy="leave the reference out: the event log has it; or begin a new log",
                )

    def transfer(self, data: TransferData) -> None:
        """Let the search learn from finished users' ones, before its first proposal.

        What it learns from is :mod:`milp_ray.search.core.transfer_data`. The event log keeps it for
        a resume. The same data given again changes nothing.

        Raises:
            SearchError: proposals were made, other data was given, or it is from another space.
            StorageError: the log cannot be written.
        """
        with self._lock:
            state = self._state
            event = event_of(data, self._space, self._objectives, state.transfer_data, state.keys)
            if event is not None:
                self._happen(event)

    @property
    def settings(self) -> EngineSettings:
        """What was given to the constructor beside the space and the objectives."""
        return EngineSettings(
            self._initial,
            self._batch,
            self._surrogate,
            dict(self._options),
            self._trials,
            self._outcome,
            self._points,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What should be reported: a repaired log, a surrogate that fell back to another."""
        with self._lock:
            return (*self._notes, *self._state.notes)

    @property
    def exhausted(self) -> bool:
        """Whether every placement of the space was proposed."""
        with self._lock:
            if not self._spent:
                if self._placements is None:
                    self._placements = count_placements(self._space) or -1
                if len(self._state.keys) == self._placements:
                    self._spent = f"all {self._placements} placements of the space were tried"
            return bool(self._spent)

    @property
    def finished(self) -> str:
        """Why there will be no more proposals; empty while there will.

        Pending ones may still be told.
        """
        with self._lock:
            if self._trials is not None and len(self._state.proposals) >= self._trials:
                return f"the limit of {self._trials} trials is reached"
            return self._spent if self.exhausted else ""

    def _given_points(self) -> tuple[MemoryConfig, ...]:
        """Those points that were not proposed yet, in their order."""
        if not self._points:
            return ()
        return tuple(
            point for point in self._points if self._space.placement(point).key not in self._state.keys
        )

    def _happen(self, event: Mapping[str, object]) -> None:
        self._events.append(event)
        self._state.apply(event)

    def _derived(self, what: str) -> int:
        digest = hashlib.sha256(f"{self._seed} {what}".encode()).digest()
        return int.from_bytes(digest[:7], "big")


def _noted(cost: Cost | None, by_user: ByUser | None = None) -> dict[str, object]:
    noted: dict[str, object] = {"cost": dict(cost)} if cost else {}
    return noted | ({"by_user": {alias: dict(found) for alias, found in by_user.items()}} if by_user else {})
