"""A user's search as plain data for tools that know neither placements nor event logs.

Every tool is told the same: a trial's parameters, values, state, and when it ran. There is no text,
no raw id and no path in it. Reading the log is :mod:`milp_ray.search.replay`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from milp_ray.search.ax.export import parameters_of
from milp_ray.search.core.records import Cost
from milp_ray.search.view import SearchView
from milp_ray.trial.records import TrialState

_SECONDS = ("inject_seconds", "instruct_seconds", "eval_seconds")


@dataclass(frozen=True)
class TrackedTrial:
    """One trial of a search.

    Attributes:
        number: within the search, from 0 on.
        state: COMPLETE, FAILED, or RUNNING for what has not ended.
        parameters: by name, as :attr:`milp_ray.memory.factors.Factor.parameters` names them.
        values: of the objectives, in their units; empty unless complete.
        placement: its key.
        source: who proposed it.
        reason: why it failed.
        began, ended: seconds since 1970; ended is None while it runs.
        is_timed: whether the log knows when it ended. Otherwise the trials lie one after the other
            from the run's beginning, with the durations that are known.
        cost: what it took, as far as the log knows.
    """

    number: int
    state: TrialState
    parameters: Mapping[str, float]
    values: Mapping[str, float]
    placement: str
    source: str
    began: float
    ended: float | None = None
    is_timed: bool = False
    reason: str = ""
    cost: Cost = field(default_factory=dict)


def tracked_trials(view: SearchView, begun: float) -> list[TrackedTrial]:
    """All trials of a search by number.

    Args:
        view: of the search.
        begun: when its run was made, in seconds since 1970.
    """
    values = {seen.id: seen.values for seen in view.observations}
    reasons = {failure.id: failure.reason for failure in view.failures}
    costs = {seen.id: seen.cost for seen in view.observations}
    costs |= {failure.id: failure.cost for failure in view.failures}
    trials: list[TrackedTrial] = []
    clock = begun + _seconds(view.reference_cost)
    for proposal in view.proposals:
        number, cost = proposal.id, costs.get(proposal.id, {})
        state = (
            TrialState.COMPLETE
            if number in values
            else TrialState.FAILED
            if number in reasons
            else TrialState.RUNNING
        )
        told = _number(cost, "ended_at")
        is_over = state is not TrialState.RUNNING
        ended = (told or clock + _seconds(cost)) if is_over else None
        began = _number(cost, "started_at") or (clock if ended is None else ended - _seconds(cost))
        clock = max(clock, ended or clock)
        trials.append(
            TrackedTrial(
                number,
                state,
                parameters_of(view.space, proposal.config),
                values.get(number, {}),
                proposal.placement.key,
                proposal.source,
                began,
                ended,
                bool(told),
                reasons.get(number, ""),
                cost,
            )
        )
    return trials


def _seconds(cost: Cost) -> float:
    return sum(_number(cost, name) for name in _SECONDS)


def _number(cost: Cost, name: str) -> float:
    found = cost.get(name, 0.0)
    return float(found) if isinstance(found, int | float) else 0.0
