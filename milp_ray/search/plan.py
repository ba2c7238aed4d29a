"""A snapshot of a search from which proposals follow, by a pure function that can run anywhere.

The engine makes it under its lock; :meth:`Plan.propose` needs neither lock nor engine, so it can run in a
thread or a Ray task while trials are told. It is deterministic: the same plan gives the same candidates on
the same machine. What becomes of the candidates is the engine's business (``Engine.accept``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from milp_ray.memory.space import MemoryConfig, MemorySpace
from milp_ray.search.advice import NO_ADVICE, advise, starts
from milp_ray.search.design import Design
from milp_ray.search.local_search import LocalSearch
from milp_ray.search.numerics import is_numerical
from milp_ray.search.objectives import Objective
from milp_ray.search.pareto import non_dominated
from milp_ray.search.records import ADVISED, Candidates
from milp_ray.search.surrogates import make_surrogate
from milp_ray.search.surrogates.base import (
    Fitted,
    FreeSurrogate,
    ModelSurrogate,
    PlanSurrogate,
    SurrogateFailed,
)
from milp_ray.search.threads import single_threaded
from milp_ray.search.transfer import Material

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from milp_ray.memory.arrays import Ints

_AROUND = 4  # points of the front whose neighbours join the pool of starts
_FEW = 3  # of fewer measurements nothing is called constant


@dataclass(frozen=True)
class Plan:
    """All that a batch of proposals depends on. Pickles if the exact objectives' functions do.

    Attributes:
        space, objectives: of the engine.
        surrogate, options: which model proposes.
        search: the effort of the local search.
        count: how many candidates are wanted.
        initial: whether the initial design is to be continued.
        design_seed: of the initial design, the same for all plans of an engine.
        seed: of this plan, derived from the engine's seed and the number of events.
        events: number of events the plan was made from.
        told: configurations that were measured, oldest first.
        gains: their values, ``n x m``, turned so that more is better.
        pending: configurations that are being measured.
        seen: placement keys that must not be proposed.
        reference: the given reference point, ``m`` numbers to be maximised, NaN where nothing is given.
        outcome: how values are scaled for the model, see :mod:`milp_ray.search.scaling`.
        material: of other users' searches, if any.
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
    told: tuple[MemoryConfig, ...] = ()
    gains: tuple[tuple[float, ...], ...] = ()
    pending: tuple[MemoryConfig, ...] = ()
    seen: frozenset[str] = field(default=frozenset(), repr=False)
    reference: tuple[float, ...] = ()
    outcome: str = "standardize"
    material: Material | None = field(default=None, repr=False)
    noted: frozenset[str] = field(default=frozenset(), repr=False)

    def propose(self) -> Candidates:
        """Up to ``count`` candidates, distinct and not seen; none if the space has none left.

        Where arithmetic fails on this search's data, what stood on it is left out, with a note: other users'
        advice, or the model (``sobol`` proposes instead). So is an objective that is the same in every trial.

        Raises:
            SearchError: the surrogate is unknown, or an exact objective is not finite somewhere.
        """
        advice, notes = NO_ADVICE, tuple[str, ...]()
        if self.material is not None:
            try:
                with single_threaded():
                    advice = advise(self)
            except Exception as error:
                if not is_numerical(error):
                    raise
                notes = (f"transfer: {type(error).__name__}; proposed without other users' searches",)
        if advice.configs:
            return Candidates(advice.configs, ADVISED)
        found = replace(
            self, count=min(self.count, advice.others), initial=self.initial and not advice.design_over
        )._unadvised()
        return Candidates(found, found.source, (*notes, *found.notes))

    def _unadvised(self) -> Candidates:
        if self.initial:
            return Candidates(Design(self.space, self.design_seed).first(self.count, self.seen), "initial")
        varying, notes = self._varying()
        found = varying._by_surrogate() if varying is not None else self._by_sobol()
        return Candidates(found, found.source, (*notes, *found.notes))

    def _varying(self) -> tuple[Plan | None, tuple[str, ...]]:
        """The plan by those objectives that differ between trials, None without a measured one; notes.

        A model of a constant says nothing, and beside it neither do hypervolumes.
        """
        columns = list(zip(*self.gains, strict=True)) if len(self.gains) >= _FEW else []
        constant = {
            o.name: o.sign * column[0]
            for o, column in zip(self.objectives, columns, strict=False)
            if o.exact is None and max(column) == min(column)
        }
        notes = tuple(
            f"{name} is {value:.4g} in every trial: left out of the search until that changes"
            for name, value in constant.items()
        )
        kept = [index for index, o in enumerate(self.objectives) if o.name not in constant]
        varying = replace(
            self,
            objectives=tuple(self.objectives[index] for index in kept),
            gains=tuple(tuple(row[index] for index in kept) for row in self.gains),
            reference=tuple(self.reference[index] for index in kept) if self.reference else (),
        )
        measured = any(o.exact is None for o in varying.objectives)
        return varying if measured else None, tuple(note for note in notes if note not in self.noted)

    def _by_sobol(self, *notes: str) -> Candidates:
        sobol = make_surrogate("sobol")
        assert isinstance(sobol, FreeSurrogate)
        return self._free(sobol, "sobol", *notes)

    def _by_surrogate(self) -> Candidates:
        surrogate = make_surrogate(self.surrogate, self.options)
        if isinstance(surrogate, FreeSurrogate):
            return self._free(surrogate, self.surrogate)
        try:
            with single_threaded():
                if isinstance(surrogate, PlanSurrogate):
                    return surrogate.candidates(self)
                return self._modelled(surrogate)
        except SurrogateFailed as failure:
            reason = str(failure)
        except Exception as error:  # a fit that succeeded may still be one that nothing can be computed from
            if not is_numerical(error):
                raise
            reason = f"{self.surrogate}: {type(error).__name__}"
        return self._by_sobol(f"{reason}; sobol proposed instead")

    def _free(self, surrogate: FreeSurrogate, source: str, *notes: str) -> Candidates:
        return Candidates(surrogate.configs(self.space, self.seen, self.count, self.seed), source, notes)

    def _modelled(self, surrogate: ModelSurrogate) -> Candidates:
        from milp_ray.memory.arrays import Configs
        from milp_ray.search.acquisition import Acquisition, with_exact
        from milp_ray.search.scaling import Scaled

        scaled = Scaled(self)
        arrays = scaled.arrays
        measured = [index for index, o in enumerate(self.objectives) if o.exact is None]
        exact = [index for index, o in enumerate(self.objectives) if o.exact is not None]
        X = scaled.inputs(self.told)
        d = self.space.num_features
        fitted: Fitted = surrogate.fit(X[:, :d].contiguous(), scaled.Y[:, measured].contiguous(), self.seed)
        acquisition = Acquisition(
            with_exact(fitted, exact, len(self.objectives), d),
            scaled.reference,
            X,
            scaled.inputs(self.pending),
            seed=self.seed,
        )
        taken, chosen = set(self.seen), list[MemoryConfig]()
        around = self._around()
        # Where other users' memories tend to be, if that is known.
        warm = Configs.of(starts(self), self.space.num_layers)

        def values(ranks: Ints) -> npt.NDArray[np.float64]:
            result: npt.NDArray[np.float64] = acquisition(scaled.rows(ranks)).numpy()
            return result

        while len(chosen) < self.count:
            found = self.search.search(
                arrays, values, seen=taken, around=around, seed=self.seed + len(chosen), warm=warm
            )
            if found.best is None:
                chosen.extend(Design(self.space, self.seed).first(self.count - len(chosen), taken))
                break
            warm = found.top
            chosen.append(found.best)
            taken.add(self.space.placement(found.best).key)
            if len(chosen) < self.count:
                acquisition.add_pending(scaled.inputs([found.best]))
        return Candidates(chosen, fitted.source, fitted.notes)

    def _around(self) -> list[MemoryConfig]:
        """The newest points of the front: their neighbourhoods have been looked through least."""
        front = non_dominated(self.gains).nonzero()[0]
        return [self.told[index] for index in front[::-1][:_AROUND]]
