"""What a search makes of the material that was transferred to it: which placements to try next, and for how
long to listen.

Some proposals of every round of four are *advised*: those from which the largest hypervolume improvement is
to be expected by the donors and the user's own trials (:mod:`milp_ray.search.transfer.multitask_gp`), one
after the other over common draws. With ``seeds`` they are placements of donors' fronts; with ``prior`` also
draws from :mod:`milp_ray.search.transfer.prior`, and steps from the best of all. During the space-filling
design they are the first two at most, so a bad neighbour cannot trap anyone; later, beside the model's own,
up to three. Where the user's trials speak against the donors, advice ends; where they speak for them, the
design ends early.

Everything follows from the plan: told trials, pending ones, and the material. The surrogate is *not* changed.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from milp_ray.memory.space import MemoryConfig
from milp_ray.search.core.pareto import dominated_by_any, hypervolume, non_dominated
from milp_ray.search.core.reference import reference_point
from milp_ray.search.transfer.multitask_gp import Floats, UserModel, donor_model
from milp_ray.search.transfer.prior import PlacementPrior

if TYPE_CHECKING:
    from milp_ray.search.core.plan import Plan

_ROUND = 4  # proposals: the advised ones, then the others
_BLIND = 4  # trials below which nothing can be said
_AGAINST, _FOR = 0.0, 2.0  # evidence below which nothing is advised, and from which the design may end
_SHORTEST = 8  # trials of a design that ends early
_DRAWS = 256  # of the prior
_STARTS = 2  # of the acquisition's local search, each with its neighbours
_STEPS = 3  # from the best of them
_WORLDS = 24  # draws of the objectives
_WORLDS_MANY = 6  # with more than two objectives, where a volume takes long


@dataclass(frozen=True)
class Advice:
    """What to do next.

    Attributes:
        configs: to be proposed next; empty: it is the turn of the design or the model.
        design_over: the model may take over from the initial design.
        others: how many proposals the design or the model may make before advice is due again.
    """

    configs: tuple[MemoryConfig, ...] = ()
    design_over: bool = False
    others: int = sys.maxsize


NO_ADVICE = Advice()


def advise(plan: Plan) -> Advice:
    """The advice for a plan with material."""
    assert plan.material is not None
    donors = tuple(donor for donor in plan.material.donors if donor.told)
    if not donors:
        return NO_ADVICE
    measured = tuple(index for index, o in enumerate(plan.objectives) if o.exact is None)
    user = UserModel(donor_model(plan.space, measured, donors), plan.told, plan.gains, plan.reference)
    told = len(plan.told)
    over = not plan.initial or (told >= _SHORTEST and user.evidence >= _FOR)
    advised = _advised(user.evidence, told, over)
    place = len(plan.seen) % _ROUND
    wanted = min(plan.count, advised - place)
    chosen = _Portfolio(plan, user).best(wanted) if wanted > 0 else []
    if not chosen:
        return Advice((), over, _ROUND - place if advised else sys.maxsize)
    return Advice(tuple(chosen), over)


def starts(plan: Plan) -> list[MemoryConfig]:
    """Further starts for the acquisition's local search: draws of the prior. The acquisition judges them."""
    if plan.material is None or plan.material.mode != "prior":
        return []
    prior = PlacementPrior(plan.space, [donor.front() for donor in plan.material.donors])
    generator = random.Random(plan.seed)
    return [prior.sample(generator) for _ in range(_STARTS)]


def _advised(evidence: float, told: int, design_over: bool) -> int:
    """How many of a round's proposals, its first ones, are advised."""
    if told >= _BLIND and evidence < _FOR:
        return 1 if evidence >= _AGAINST else 0
    return _ROUND - 1 if design_over and told >= _BLIND else _ROUND // 2


class _Portfolio:
    """Placements that together are expected to add most to the user's front."""

    def __init__(self, plan: Plan, user: UserModel) -> None:
        assert plan.material is not None
        self._plan, self._user, self._material = plan, user, plan.material
        self._tried = [*plan.told, *plan.pending]
        self._keys = {*plan.seen, ""}

    def best(self, count: int) -> list[MemoryConfig]:
        """Up to ``count`` configurations, distinct and not seen; fewer where there are no more."""
        pool = self._new(self._pool())
        chosen: list[MemoryConfig] = []
        while len(chosen) < count and pool:
            best, gain = self._top(pool, chosen)
            for _ in range(_STEPS if self._material.mode == "prior" else 0):
                moves = self._new([best, *self._plan.space.neighbours(best)])
                step, gain = self._top(moves, chosen)
                if step == best:
                    break
                best = step
            if gain <= 0.0 and self._plan.told:
                break
            chosen.append(best)
            self._keys.add(self._plan.space.placement(best).key)
            pool = self._new(pool)
        return chosen

    def _pool(self) -> list[MemoryConfig]:
        plan = self._plan
        fronts = [donor.front() for donor in self._material.donors]
        pool = [config for front in fronts for config in front]
        if self._material.mode == "prior":
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
        known = [*self._tried, *chosen]
        worlds = self._worlds([*known, *configs])
        bottom = self._bottom()
        total = np.zeros(len(configs))
        for world in worlds:
            front = world[: len(known)]
            front = front[non_dominated(front) & (front > bottom).all(axis=1)] if len(front) else front
            total += added(world[len(known) :], front, bottom)
        index = int(np.argmax(total))
        return configs[index], float(total[index])

    def _worlds(self, configs: Sequence[MemoryConfig]) -> Floats:
        """``W x c x m`` draws of all objectives at ``configs``."""
        plan = self._plan
        count = _WORLDS if len(plan.objectives) <= 2 else _WORLDS_MANY
        generator = np.random.default_rng(plan.seed % 2**63)
        result = np.empty((count, len(configs), len(plan.objectives)))
        moments = iter(self._user.moments(configs))
        for index, objective in enumerate(plan.objectives):
            if objective.exact is not None:
                result[:, :, index] = [
                    objective.sign * objective.exact(plan.space.placement(c)) for c in configs
                ]
                continue
            mean, covariance = next(moments)
            jitter = 1e-6 * float(np.diag(covariance).mean())
            root = np.linalg.cholesky(covariance + jitter * np.eye(len(configs)))
            result[:, :, index] = mean + generator.standard_normal((count, len(configs))) @ root.T
        return result

    def _bottom(self) -> Floats:
        """The reference point: the plan's, or while nothing was told the donors'."""
        plan = self._plan
        donors = [donor for donor in self._material.donors if donor.told]
        tables = plan.gains or [values for donor in donors for _, values in donor.told]
        point = reference_point(tables, plan.reference)
        assert point is not None  # there is a donor with a trial
        return np.asarray(point, dtype=np.float64)


def added(points: Floats, front: Floats, bottom: Floats) -> Floats:
    """The volume that each row of ``points`` (``c x m``) alone adds to ``front`` (``k x m``, non-dominated
    and above ``bottom``)."""
    if points.shape[1] == 2:
        order = np.argsort(-front[:, 0], kind="stable")
        x, y = front[order, 0], front[order, 1]
        left, right = np.append(x, bottom[0]), np.append(np.inf, x)
        floor = np.append(bottom[1], y)
        wide = np.clip(np.minimum(points[:, [0]], right) - left, 0.0, None)
        high = np.clip(points[:, [1]] - floor, 0.0, None)
        return np.asarray((wide * high).sum(axis=1), dtype=np.float64)
    before = hypervolume(front, list(bottom))
    counts = [not dominated_by_any(list(p), front) and bool((p > bottom).all()) for p in points]
    return np.array(
        [
            hypervolume(np.vstack([front, p]), list(bottom)) - before if counted else 0.0
            for p, counted in zip(points, counts, strict=True)
        ]
    )
