"""Proposals that follow from other users' searches: which placements to try next, and for how long.

Some proposals of every round of four are *warm*: those with the largest expected hypervolume
improvement by the sources and the user's own trials (:mod:`milp_ray.search.transfer.multitask_gp`),
one after the other over common samples. With ``seeds`` they are placements of sources' fronts; with
``prior`` also draws from :mod:`milp_ray.search.transfer.prior`, and steps from the best of all.
During the space-filling design they are the first two at most, so a bad neighbour cannot trap
anyone; later, beside the model's own, up to three. Where the user's trials speak against the
sources, no more are made; where they speak for them, the design ends early.

Everything follows from the plan: observations, pending trials, and the transfer data. The surrogate
is *not* changed.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from milp_ray.memory.factors import MemoryConfig
from milp_ray.search.core.pareto import dominated_by_any, hypervolume, non_dominated, strips
from milp_ray.search.core.reference import reference_point
from milp_ray.search.transfer.multitask_gp import Floats, UserModel, source_model
from milp_ray.search.transfer.prior import PlacementPrior

if TYPE_CHECKING:
    from milp_ray.search.core.plan import Plan

_ROUND = 4  # proposals: the warm ones, then the others
_BLIND = 4  # trials below which nothing can be said
_AGAINST, _FOR = 0.0, 2.0  # evidence below which none is warm, and from which the design may end
_SHORTEST = 8  # trials of a design that ends early
_DRAWS = 256  # of the prior
_STARTS = 2  # of the acquisition's local search, each with its neighbours
_STEPS = 3  # from the best of them
_SAMPLES = 24  # W, of the objectives' joint posterior
_SAMPLES_MANY = 6  # with more than two objectives, where a volume takes long


@dataclass(frozen=True)
class WarmStart:
    """What to do next.

    Attributes:
        configs: to be proposed next; empty: it is the turn of the design or the model.
        design_over: the model may take over from the initial design.
        others: how many proposals the design or the model may make before warm ones are due again.
    """

    configs: tuple[MemoryConfig, ...] = ()
    design_over: bool = False
    others: int = sys.maxsize


COLD = WarmStart()


def warm_start(plan: Plan) -> WarmStart:
    """What other users' searches come to for a plan with transfer data."""
    assert plan.transfer_data is not None
    sources = tuple(source for source in plan.transfer_data.sources if source.observations)
    if not sources:
        return COLD
    measured = tuple(index for index, o in enumerate(plan.objectives) if o.exact is None)
    user = UserModel(
        source_model(plan.space, measured, sources), plan.observed, plan.maximized, plan.reference
    )
    n = len(plan.observed)
    over = not plan.initial or (n >= _SHORTEST and user.evidence >= _FOR)
    warm = _warm(user.evidence, n, over)
    position = len(plan.seen) % _ROUND
    wanted = min(plan.count, warm - position)
    chosen = _Portfolio(plan, user).best(wanted) if wanted > 0 else []
    if not chosen:
        return WarmStart((), over, _ROUND - position if warm else sys.maxsize)
    return WarmStart(tuple(chosen), over)


def starts(plan: Plan) -> list[MemoryConfig]:
    """Further starts for the acquisition's local search: draws of the prior, which it judges."""
    if plan.transfer_data is None or plan.transfer_data.mode != "prior":
        return []
    prior = PlacementPrior(plan.space, [source.front() for source in plan.transfer_data.sources])
    generator = random.Random(plan.seed)
    return [prior.sample(generator) for _ in range(_STARTS)]


def _warm(evidence: float, n: int, design_over: bool) -> int:
    """How many of a round's proposals, its first ones, are warm after ``n`` observations."""
    if n >= _BLIND and evidence < _FOR:
        return 1 if evidence >= _AGAINST else 0
    return _ROUND - 1 if design_over and n >= _BLIND else _ROUND // 2


class _Portfolio:
    """Placements that together are expected to add most to the user's front."""

    def __init__(self, plan: Plan, user: UserModel) -> None:
        assert plan.transfer_data is not None
        self._plan, self._user, self._data = plan, user, plan.transfer_data
        self._tried = [*plan.observed, *plan.pending]
        self._keys = {*plan.seen, ""}

    def best(self, count: int) -> list[MemoryConfig]:
        """Up to ``count`` configurations, distinct and not seen; fewer where there are no more."""
        pool = self._new(self._pool())
        chosen: list[MemoryConfig] = []
        while len(chosen) < count and pool:
            best, improvement = self._top(pool, chosen)
            for _ in range(_STEPS if self._data.mode == "prior" else 0):
                moves = self._new([best, *self._plan.space.neighbours(best)])
                step, improvement = self._top(moves, chosen)
                if step == best:
                    break
                best = step
            if improvement <= 0.0 and self._plan.observed:
                break
            chosen.append(best)
            self._keys.add(self._plan.space.placement(best).key)
            pool = self._new(pool)
        return chosen

    def _pool(self) -> list[MemoryConfig]:
        plan = self._plan
        fronts = [source.front() for source in self._data.sources]
        pool = [config for front in fronts for config in front]
        if self._data.mode == "prior":
            prior, generator = PlacementPrior(plan.space, fronts), random.Random(plan.seed)
            pool += [prior.sample(generator) for _ in range(_DRAWS)]
        return pool

    def _new(self, configs: Sequence[MemoryConfig]) -> list[MemoryConfig]:
        """Those that were neither seen nor chosen, each placement once, in order."""
        found: dict[str, MemoryConfig] = {}
        for config in configs:
            key = self._plan.space.placement(config).key
            if key not in self._keys:
                found.setdefault(key, config)
        return list(found.values())

    def _top(
        self, configs: Sequence[MemoryConfig], chosen: Sequence[MemoryConfig]
    ) -> tuple[MemoryConfig, float]:
        """The configuration that adds most, and how much; a tie goes to the first."""
        # 1) sample what was tried, what was chosen and what may be, together
        known = [*self._tried, *chosen]
        samples = self._posterior_samples([*known, *configs])  # W x (k + c) x m
        ref_point = self._ref_point()  # m
        improvement = np.zeros(len(configs))  # c
        for sample in samples:
            # 2) the front of what is known, as it is in this sample
            front = sample[: len(known)]  # k x m
            front = front[non_dominated(front) & (front > ref_point).all(axis=1)] if len(front) else front
            # 3) what each configuration adds to it; a sum tells as much as a mean
            improvement += hypervolume_improvement(sample[len(known) :], front, ref_point)
        best = int(np.argmax(improvement))
        return configs[best], float(improvement[best])

    def _posterior_samples(self, configs: Sequence[MemoryConfig]) -> Floats:
        """``W x c x m`` joint samples of all objectives at ``configs``."""
        plan = self._plan
        count = _SAMPLES if len(plan.objectives) <= 2 else _SAMPLES_MANY
        generator = np.random.default_rng(plan.seed % 2**63)
        result = np.empty((count, len(configs), len(plan.objectives)))  # W x c x m
        moments = iter(self._user.moments(configs))
        for index, objective in enumerate(plan.objectives):
            # 1) an exact objective is the same in every sample
            if objective.exact is not None:
                result[:, :, index] = [
                    objective.maximized(objective.exact(plan.space.placement(c))) for c in configs
                ]
                continue
            # 2) a measured one: mean + L z, the same z for whatever is asked about in this plan
            mean, covariance = next(moments)  # c, c x c
            jitter = 1e-6 * float(np.diag(covariance).mean())
            root = np.linalg.cholesky(covariance + jitter * np.eye(len(configs)))  # c x c
            base_samples = generator.standard_normal((count, len(configs)))  # W x c
            result[:, :, index] = mean + base_samples @ root.T
        return result

    def _ref_point(self) -> Floats:
        """The reference point: the plan's, or while nothing was observed that of the sources."""
        plan = self._plan
        sources = [source for source in self._data.sources if source.observations]
        tables = plan.maximized or [values for source in sources for _, values in source.observations]
        point = reference_point(tables, plan.reference)
        assert point is not None  # there is a source with a trial
        return np.asarray(point, dtype=np.float64)  # m


def hypervolume_improvement(points: Floats, front: Floats, ref_point: Floats) -> Floats:
    """The volume that each point alone adds to a front.

    Args:
        points: ``c x m``.
        front: ``k x m``, non-dominated and above ``ref_point``.
        ref_point: ``m``.

    Returns:
        ``c`` numbers from 0 on.
    """
    # 1) two objectives: what a point covers of each strip above the front
    if points.shape[1] == 2:
        left, right, floor = strips(front, ref_point)  # k + 1 each
        width = np.clip(np.minimum(points[:, [0]], right) - left, 0.0, None)  # c x (k + 1)
        height = np.clip(points[:, [1]] - floor, 0.0, None)  # c x (k + 1)
        return np.asarray((width * height).sum(axis=1), dtype=np.float64)  # c
    # 2) otherwise the difference of two hypervolumes, for those points that change it
    before = hypervolume(front, list(ref_point))
    adds = [not dominated_by_any(list(p), front) and bool((p > ref_point).all()) for p in points]
    return np.array(
        [
            hypervolume(np.vstack([front, p]), list(ref_point)) - before if one_adds else 0.0
            for p, one_adds in zip(points, adds, strict=True)
        ]
    )
