"""Selects the point of a user's front that becomes the memory, by the study's section ``choose``.

Policies: ``knee`` (the balanced point), ``best:<objective>``, ``budget`` (the best one that is
small enough).
"""

from __future__ import annotations

from collections.abc import Sequence

from milp_ray.config.models import ChooseSettings
from milp_ray.config.objectives import Objective, maximized
from milp_ray.errors import SearchError
from milp_ray.memory.architectures import Architecture
from milp_ray.search import Observation
from milp_ray.search.core.pareto import knee
from milp_ray.search.view import SearchView


def select(
    engine: SearchView,
    settings: ChooseSettings,
    architecture: Architecture | None,
) -> Observation:
    """One observation of a user's search, on its front.

    ``budget``: of *all* trials with at most ``settings.budget`` trainable parameters the best in
    the first objective, since what is small is often dominated where size is no objective; if there
    is none, the smallest trial. Only this policy needs the architecture.

    Raises:
        SearchError: the front is empty.
    """
    front, objectives = engine.front(), engine.objectives
    if not front:
        raise SearchError(
            "the user has no measured trial to choose from",
            expected="at least one trial that did not fail",
            remedy="look at the failed trials' reasons: milp-ray show RUN USER",
        )
    by_name = {objective.name: objective for objective in objectives}
    kind, _, name = settings.policy.partition(":")
    if kind == "best":
        return _best(front, by_name[name])
    if kind == "budget":
        assert architecture is not None
        sizes = {seen.id: architecture.trainable_params(seen.placement) for seen in engine.observations}
        within = [seen for seen in engine.observations if sizes[seen.id] <= (settings.budget or 0)]
        if within:
            return _best(within, objectives[0])
        return min(engine.observations, key=lambda seen: (sizes[seen.id], seen.id))
    rows = [maximized(objectives, seen.values) for seen in front]
    return front[knee(rows)]


def select_from_log(engine: SearchView, settings: ChooseSettings) -> Observation | None:
    """:func:`select`, as far as an event log alone tells.

    Returns:
        None where no trial is measured yet, and for the policy ``budget``, whose sizes need the
        base.
    """
    is_possible = engine.counts.told > 0 and settings.policy != "budget"
    return select(engine, settings, None) if is_possible else None


def _best(front: Sequence[Observation], objective: Objective) -> Observation:
    return max(front, key=lambda seen: (objective.maximized(seen.values[objective.name]), -seen.id))
