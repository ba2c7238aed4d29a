"""What can be read of a search: proposals and how they ended, the front, and what it is worth.

What changes a search is *not* covered: :mod:`milp_ray.search.engine`. All methods may be called
from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from milp_ray.config.objectives import Objective, in_units, maximized
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.space import MemorySpace
from milp_ray.search.core.design import Design
from milp_ray.search.core.pareto import hypervolume, hypervolume_curve, non_dominated
from milp_ray.search.core.records import Cost, Failure, Observation, Proposal, ProposalCounts
from milp_ray.search.core.reference import exact_ranges, given_point, reference_point
from milp_ray.search.core.transfer_data import TransferData
from milp_ray.search.state import SearchState


class SearchView:
    """What a search has come to so far.

    Args:
        space: where it searches.
        objectives: what it optimises.
        state: what its events add up to; changed under :attr:`_lock` only.
    """

    def __init__(self, space: MemorySpace, objectives: tuple[Objective, ...], state: SearchState) -> None:
        self._space, self._objectives, self._state = space, objectives, state
        self._lock = threading.RLock()
        self._ranges: tuple[tuple[float, float] | None, ...] | None = None

    @property
    def space(self) -> MemorySpace:
        """The space that is searched."""
        return self._space

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is optimised."""
        return self._objectives

    @property
    def reference(self) -> Mapping[str, float] | None:
        """The reference as it was given, or None. What it makes of it: :meth:`reference_point`."""
        with self._lock:
            return None if self._state.reference is None else dict(self._state.reference)

    @property
    def reference_cost(self) -> Cost:
        """What the no-memory measurement took; empty where it is not known."""
        with self._lock:
            return self._state.reference_cost

    @property
    def transferred(self) -> TransferData | None:
        """What was transferred from other users' searches, or None."""
        with self._lock:
            return self._state.transfer_data

    def front(self) -> list[Observation]:
        """The non-dominated observations, best in the first objective first."""
        with self._lock:
            seen, table = self.observations, self._maximized()
        kept = [index for index, keep in enumerate(non_dominated(table)) if keep]
        kept.sort(key=lambda index: (-table[index][0], seen[index].id))
        return [seen[index] for index in kept]

    @property
    def proposals(self) -> tuple[Proposal, ...]:
        """All proposals ever made, by id."""
        with self._lock:
            return tuple(self._state.proposals)

    @property
    def pending(self) -> tuple[Proposal, ...]:
        """Proposals that have not ended, oldest first; a resume runs these (again) first."""
        with self._lock:
            return tuple(self._state.pending.values())

    @property
    def observations(self) -> tuple[Observation, ...]:
        """What was told, in that order."""
        with self._lock:
            return tuple(self._state.observations.values())

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What was reported as failed, in that order."""
        with self._lock:
            return tuple(self._state.failures.values())

    @property
    def counts(self) -> ProposalCounts:
        """How many proposals there are and how they stand, without building any tuple."""
        with self._lock:
            state = self._state
            return ProposalCounts(
                len(state.proposals), len(state.pending), len(state.observations), len(state.failures)
            )

    def reference_point(self, *, lowered: bool = False) -> dict[str, float] | None:
        """The point that hypervolume is measured from now, by name, in the objectives' units.

        None while there is neither a reference nor an observation. ``lowered``: see
        :func:`milp_ray.search.core.reference.reference_point`.
        """
        with self._lock:
            point = reference_point(self._maximized(), self._given(), lowered=lowered)
        if point is None:
            return None
        return in_units(self._objectives, [float(value) for value in point])

    def hypervolume(self) -> float:
        """The front's hypervolume from today's :meth:`reference_point`; 0 without a front."""
        point, table = self.reference_point(), self._maximized()
        return hypervolume(table, maximized(self._objectives, point)) if point and table else 0.0

    def hypervolume_curve(self, *, lowered: bool = False) -> list[float]:
        """The front's hypervolume after each observation, in the product of the objectives' units.

        All from today's :meth:`reference_point`, so it never decreases.
        """
        point, table = self.reference_point(lowered=lowered), self._maximized()
        return [] if point is None else hypervolume_curve(table, maximized(self._objectives, point))

    def _maximized(self) -> list[tuple[float, ...]]:
        """``n x m`` values of all observations, to be maximised, in order."""
        with self._lock:
            return [maximized(self._objectives, seen.values) for seen in self._state.observations.values()]

    def _given(self) -> tuple[float, ...]:
        """The given reference, ``m`` numbers to be maximised, NaN where nothing is given."""
        if self._ranges is None:
            sample: list[MemoryConfig] = []
            if any(objective.exact is not None for objective in self._objectives):
                sample += Design(self._space, 0).first(128)
                sample += [self._space.from_unit([corner] * self._space.unit_dim) for corner in (0.0, 1.0)]
            self._ranges = exact_ranges(self._space, self._objectives, sample)
        return given_point(self._objectives, self._state.reference, self._ranges)
