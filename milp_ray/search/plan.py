"""A snapshot of a search from which proposals follow, by a pure function that can run anywhere.

The engine makes it under its lock; :meth:`Plan.propose` needs neither lock nor engine, so it can run in a
thread or a Ray task while trials are told. It is deterministic: the same plan gives the same candidates on
the same machine. What becomes of the candidates is the engine's business (``Engine.accept``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from milp_ray.memory.space import MemoryConfig, MemorySpace
from milp_ray.search.advice import NO_ADVICE, advise, starts
from milp_ray.search.design import Design
from milp_ray.search.local_search import LocalSearch
from milp_ray.search.objectives import Objective, exact_values
from milp_ray.search.pareto import non_dominated
from milp_ray.search.records import ADVISED, Candidates
from milp_ray.search.reference import reference_point
from milp_ray.search.surrogates import make_surrogate
from milp_ray.search.surrogates.base import Fitted, FreeSurrogate, ModelSurrogate, SurrogateFailed
from milp_ray.search.transfer import Material

if TYPE_CHECKING:
    from torch import Tensor

_AROUND = 4  # points of the front whose neighbours join the pool of starts


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
        material: of other users' searches, if any.
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
    material: Material | None = field(default=None, repr=False)

    def propose(self) -> Candidates:
        """Up to ``count`` candidates, distinct and not seen; none if the space has none left.

        Raises:
            SearchError: the surrogate is unknown, or an exact objective is not finite somewhere.
        """
        advice = advise(self) if self.material is not None else NO_ADVICE
        if advice.configs:
            return Candidates(advice.configs, ADVISED)
        return replace(
            self, count=min(self.count, advice.others), initial=self.initial and not advice.design_over
        )._unadvised()

    def _unadvised(self) -> Candidates:
        if self.initial:
            return Candidates(Design(self.space, self.design_seed).first(self.count, self.seen), "initial")
        surrogate = make_surrogate(self.surrogate, self.options)
        if isinstance(surrogate, FreeSurrogate):
            return self._free(surrogate, self.surrogate)
        try:
            return self._modelled(surrogate)
        except SurrogateFailed as failure:
            sobol = make_surrogate("sobol")
            assert isinstance(sobol, FreeSurrogate)
            return self._free(sobol, "sobol", f"{failure}; sobol proposed instead")

    def _free(self, surrogate: FreeSurrogate, source: str, *notes: str) -> Candidates:
        return Candidates(surrogate.configs(self.space, self.seen, self.count, self.seed), source, notes)

    def _modelled(self, surrogate: ModelSurrogate) -> Candidates:

        from milp_ray.search.acquisition import Acquisition, with_exact

        scaled = _Scaled(self)
        measured = [index for index, o in enumerate(self.objectives) if o.exact is None]
        exact = [index for index, o in enumerate(self.objectives) if o.exact is not None]
        X = scaled.inputs(self.told)
        d = self.space.num_features
        fitted: Fitted = surrogate.fit(X[:, :d].contiguous(), scaled.Y[:, measured].contiguous(), self.seed)
        acquisition = Acquisition(
            with_exact(fitted, exact, len(self.objectives), d),
            fitted.components,
            scaled.reference,
            X,
            scaled.inputs(self.pending),
            seed=self.seed,
        )
        taken, chosen = set(self.seen), list[MemoryConfig]()

        def values(configs: Sequence[MemoryConfig]) -> list[float]:
            result: list[float] = acquisition(scaled.inputs(configs)).tolist()
            return result

        while len(chosen) < self.count:
            best = self.search.best(
                self.space, values, seen=taken, around=self._around(), seed=self.seed + len(chosen)
            )
            if best is None:
                chosen.extend(Design(self.space, self.seed).first(self.count - len(chosen), taken))
                break
            chosen.append(best)
            taken.add(self.space.placement(best).key)
            if len(chosen) < self.count:
                acquisition.add_pending(scaled.inputs([best]))
        return Candidates(chosen, fitted.source, fitted.notes)

    def _around(self) -> list[MemoryConfig]:
        """The newest points of the front: their neighbourhoods have been looked through least. And where
        other users' memories tend to be, if that is known."""
        front = non_dominated(self.gains).nonzero()[0]
        return [*(self.told[index] for index in front[::-1][:_AROUND]), *starts(self)]


class _Scaled:
    """A plan's data as tensors: features in the unit cube, values with mean 0 and standard deviation 1."""

    def __init__(self, plan: Plan) -> None:
        import numpy as np
        import torch

        self._plan = plan
        Y = np.asarray(plan.gains, dtype=np.float64)
        reference = reference_point(plan.gains, plan.reference)
        assert reference is not None  # a plan with a model has an observation
        # Dividing first keeps squares of very large values from overflowing.
        size = np.maximum(np.abs(Y).max(axis=0), np.finfo(np.float64).tiny)
        self._centre = (Y / size).mean(axis=0) * size
        spread = (Y / size - self._centre / size).std(axis=0) * size
        # A constant outcome keeps its scale; rounding alone must not be blown up to a spread of 1.
        self._spread = np.where(spread > 1e-12 * size, spread, np.maximum(size, 1e-12))
        self.Y: Tensor = torch.as_tensor((Y - self._centre) / self._spread)
        self.reference: Tensor = torch.as_tensor((reference - self._centre) / self._spread)

    def inputs(self, configs: Sequence[MemoryConfig]) -> Tensor:
        """``k x D``: features, then a column per exact objective."""
        import torch

        plan = self._plan
        exact = [(index, o) for index, o in enumerate(plan.objectives) if o.exact is not None]
        rows = []
        for config in configs:
            placement = plan.space.placement(config)
            row = list(plan.space.features(placement))
            if exact:
                known = exact_values(plan.objectives, placement)
                row += [
                    (o.sign * known[o.name] - float(self._centre[index])) / float(self._spread[index])
                    for index, o in exact
                ]
            rows.append(row)
        return torch.tensor(rows, dtype=torch.double).reshape(len(rows), plan.space.num_features + len(exact))
