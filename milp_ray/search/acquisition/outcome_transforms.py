"""A plan's data as a model wants them: placements as features, values on a common scale.

Two outcome transforms, objective by objective and monotone, so that dominance is not touched:

- ``standardize``: mean 0 and standard deviation 1.
- ``copula``: normal scores of the ranks (docs/references.md: Salinas 2020; the choice of AutoPEFT,
  Zhou 2024), linear between observations and beyond them: outliers lose their weight, and so do
  distances.

The reference point and the exact objectives' columns go through the same map.

Sizes in comments: n observations, k configurations, m objectives, L layers, d features, D input
columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from milp_ray.config.objectives import maximized
from milp_ray.memory.arrays import Configs, Floats, SpaceArrays
from milp_ray.memory.factors import MemoryConfig
from milp_ray.search.core.objectives import exact_values
from milp_ray.search.core.reference import reference_point

if TYPE_CHECKING:
    from milp_ray.search.core.plan import Plan


class PlanTensors:
    """A plan's data as a model wants them.

    Attributes:
        arrays: of the plan's space.
        Y: ``n x m`` values, to be maximised, scaled.
        ref_point: ``m`` numbers on the same scale.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.arrays = SpaceArrays(plan.space)
        Y = np.asarray(plan.maximized, dtype=np.float64)  # n x m
        ref_point = reference_point(plan.maximized, plan.reference)  # m
        assert ref_point is not None  # a plan with a model has an observation
        kind = Copula if plan.outcome == "copula" else Standardized
        self._maps = [kind(column) for column in Y.T]
        self._exact = [index for index, o in enumerate(plan.objectives) if o.exact is not None]
        self.Y: Tensor = self._mapped(Y)  # n x m
        self.ref_point: Tensor = self._mapped(ref_point[None])[0]  # 1 x m -> m

    def inputs(self, configs: Sequence[MemoryConfig]) -> Tensor:
        """``k x D``: d features, then a column per exact objective."""
        return self.of_rows(self.arrays.rows(Configs.of(configs, self._plan.space)))

    def of_rows(self, rows: Floats) -> Tensor:
        """The same of ``k`` placements as rows."""
        # 1) the features that models read
        features = torch.as_tensor(self.arrays.features(rows))  # k x d
        if not self._exact:
            return features
        objectives = self._plan.objectives
        # 2) exact objectives are computed, to be maximised, ...
        found = np.empty((len(rows), len(self._exact)))  # k x (number of exact objectives)
        for index, row in enumerate(rows.tolist()):
            known = exact_values(objectives, self.arrays.placement(row))
            found[index] = maximized([objectives[i] for i in self._exact], known)
        # 3) ... and mapped as the observed values are: the acquisition compares them
        for column, index in enumerate(self._exact):
            found[:, column] = self._maps[index](found[:, column])
        return torch.cat([features, torch.as_tensor(found)], dim=1)  # k x D

    def _mapped(self, Y: Floats) -> Tensor:
        """``k x m`` values on the common scale."""
        columns = [scale(column) for scale, column in zip(self._maps, Y.T, strict=True)]
        return torch.as_tensor(np.stack(columns, axis=1))


class Standardized:
    """To mean 0 and standard deviation 1 of the given values."""

    def __init__(self, values: Floats) -> None:
        # Dividing first keeps squares of very large values from overflowing.
        size = max(float(np.abs(values).max()), float(np.finfo(np.float64).tiny))
        self._centre = float((values / size).mean() * size)
        spread = float((values / size - self._centre / size).std() * size)
        # A constant outcome keeps its scale; rounding alone must not be blown up to a spread of 1.
        self._spread = spread if spread > 1e-12 * size else max(size, 1e-12)

    def __call__(self, values: Floats) -> Floats:
        """``values``, scaled."""
        return (values - self._centre) / self._spread


class Copula:
    """To normal scores: Φ⁻¹((rank - 1/2) / n), ties at the mean of their ranks."""

    def __init__(self, values: Floats) -> None:
        from scipy.stats import norm, rankdata  # type: ignore[import-untyped]

        self._linear = Standardized(values)
        # u distinct ones of n values, each with the normal score of its mean rank
        known, where = np.unique(values, return_index=True)  # u, u
        scores = norm.ppf((rankdata(values) - 0.5) / len(values))[where]  # n -> u
        self._known, self._scores = known, np.asarray(scores, dtype=np.float64)

    def __call__(self, values: Floats) -> Floats:
        """``values``, scaled; beyond the observed range with the slope of the whole range."""
        known, scores = self._known, self._scores
        if len(known) < 2:
            return self._linear(values)
        # Linear between neighbours, and beyond the ends, so that better still is still better.
        slope = (scores[-1] - scores[0]) / (known[-1] - known[0])
        inside = np.interp(values, known, scores)
        below, above = np.minimum(values - known[0], 0.0), np.maximum(values - known[-1], 0.0)
        return np.asarray(inside + slope * (below + above), dtype=np.float64)
