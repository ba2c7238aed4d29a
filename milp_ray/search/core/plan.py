"""A snapshot of a search from which proposals follow, as plain data.

The engine makes it under its lock; :func:`milp_ray.search.propose.propose` turns it into
candidates, in any process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from milp_ray.config.objectives import Objective
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.space import MemorySpace
from milp_ray.search.core.local_search import LocalSearch
from milp_ray.search.core.transfer_data import TransferData


@dataclass(frozen=True)
class Plan:
    """All that a batch of proposals depends on. Pickles if the exact objectives' functions do.

    Example:
        >>> from milp_ray.search import Engine
        >>> from milp_ray.search.propose import propose
        >>> space = MemorySpace(num_layers=4, max_loras=4, ranks=(8, 16))
        >>> engine = Engine(space, [Objective("loss", "min")], initial=2)
        >>> plan = engine.plan(2)
        >>> plan.initial, plan.count, plan.observed
        (True, 2, ())
        >>> list(propose(plan)) == list(propose(plan))  # all that a proposal depends on
        True

    Attributes:
        space, objectives: of the engine.
        surrogate, options: which surrogate or sampler proposes.
        search: the effort of the local search.
        count: how many candidates are wanted.
        initial: whether the initial design is to be continued.
        given: configurations to be proposed before anything else, of those that the study names.
        design_seed: of the initial design, the same for all plans of an engine.
        seed: of this plan, derived from the engine's seed and the number of events.
        events: number of events the plan was made from.
        observed: configurations that were measured, oldest first.
        maximized: ``n x m``, what they measured, to be maximised.
        pending: configurations that are being measured.
        seen: placement keys that must not be proposed.
        reference: ``m`` numbers as given, to be maximised; NaN where nothing is given.
        outcome: how values are scaled for the model
            (:mod:`milp_ray.search.acquisition.outcome_transforms`).
        transfer_data: of other users' searches, if any.
        noted: what was noted with earlier proposals, and need not be told again.
    """

    space: MemorySpace
    objectives: tuple[Objective, ...]
    surrogate: str
    options: Mapping[str, object]
    search: LocalSearch
    count: int
    initial: bool
    design_seed: int
    seed: int
    events: int
    given: tuple[MemoryConfig, ...] = ()
    observed: tuple[MemoryConfig, ...] = ()
    maximized: tuple[tuple[float, ...], ...] = ()
    pending: tuple[MemoryConfig, ...] = ()
    seen: frozenset[str] = field(default=frozenset(), repr=False)
    reference: tuple[float, ...] = ()
    outcome: str = "standardize"
    transfer_data: TransferData | None = field(default=None, repr=False)
    noted: frozenset[str] = field(default=frozenset(), repr=False)
