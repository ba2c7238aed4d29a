"""``gp``: a Gaussian process per objective, hyperparameters at their most probable values.

BoTorch's SingleTaskGP with its default kernel and dimension-scaled log-normal length-scale prior (Hvarfner et
al. 2024), which also holds in tens of dimensions. What ``saas`` falls back to.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from milp_ray.search.surrogates import register
from milp_ray.search.surrogates.base import Fitted, SurrogateFailed, check_data

if TYPE_CHECKING:
    from torch import Tensor


@register("gp")
class Gp:
    """Maximum a posteriori fit per output, outcomes standardized; deterministic, the seed is not needed."""

    def fit(self, X: Tensor, Y: Tensor, seed: int) -> Fitted:
        """See :class:`~milp_ray.search.surrogates.base.ModelSurrogate`."""
        check_data(X, Y)
        import torch
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import ModelListGP, SingleTaskGP
        from botorch.models.transforms import Standardize
        from gpytorch.mlls import ExactMarginalLogLikelihood

        models = []
        # Restarts of a failed fit draw from torch's global generator.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed % 2**63)
            for index in range(Y.shape[1]):
                model = SingleTaskGP(X, Y[:, index : index + 1], outcome_transform=Standardize(1))
                try:
                    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
                except Exception as error:  # BoTorch, GPyTorch, SciPy and LAPACK each raise their own
                    raise SurrogateFailed(f"gp: {type(error).__name__}") from error
                models.append(model.eval())
        return Fitted(ModelListGP(*models), components=1, source="gp")
