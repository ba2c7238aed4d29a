"""``gp``: a Gaussian process per objective, hyperparameters at their most probable values.

BoTorch's SingleTaskGP with its default kernel and dimension-scaled log-normal length-scale prior
(docs/references.md: Hvarfner 2024), which also holds in tens of dimensions. What ``saas`` falls
back to. The optimum is BoTorch's own, found with a written-out gradient: automatic differentiation
through GPyTorch's layers took 10 ms a step at n = 100 and some 800 steps, more than sampling a
SAAS-GP. Why the project writes a kernel more than once: docs/search.md.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from milp_ray.search.surrogates import register
from milp_ray.search.surrogates.base import Fitted, SurrogateFailed, check_data

if TYPE_CHECKING:
    from botorch.models import SingleTaskGP
    from torch import Tensor

Array = npt.NDArray[np.float64]

_STEPS = 400


@register("gp")
class Gp:
    """Maximum a posteriori fit per output, outcomes standardized; deterministic without a seed.

    Example:
        >>> import torch
        >>> X = torch.linspace(0, 1, 6, dtype=torch.double).unsqueeze(-1)  # 6 x 1
        >>> fitted = Gp().fit(X, X**2, seed=0)  # an output a column of Y
        >>> fitted.source, fitted.components
        ('gp', 1)
        >>> posterior = fitted.model.posterior(torch.tensor([[0.5]], dtype=torch.double))
        >>> abs(posterior.mean.item() - 0.25) < 0.05
        True
    """

    def fit(self, X: Tensor, Y: Tensor, seed: int) -> Fitted:
        """See :class:`~milp_ray.search.surrogates.base.ModelSurrogate`."""
        check_data(X, Y)
        from botorch.models import ModelListGP, SingleTaskGP
        from botorch.models.transforms import Standardize

        models = []
        for index in range(Y.shape[1]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a constant outcome, or a single one, is no news to us
                model = SingleTaskGP(X, Y[:, index : index + 1], outcome_transform=Standardize(1))
            try:
                maximize(model)
            except Exception as error:  # SciPy and LAPACK each raise their own
                raise SurrogateFailed(f"gp: {type(error).__name__}") from error
            models.append(model.eval())
        return Fitted(ModelListGP(*models), components=1, source="gp")


def maximize(model: SingleTaskGP) -> float:
    """Set a model's mean, noise and length scales to their most probable values.

    Returns the log posterior (constants dropped), which tests/search/surrogates/test_gp.py holds to
    BoTorch's own optimum.

    Raises:
        numpy.linalg.LinAlgError: no point was found at which the covariance could be factored.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    # 1) start from the model's own values: mean, log noise, d log length scales
    kernel, noise = model.covar_module, model.likelihood.noise_covar
    posterior = _LogPosterior(model)
    start = np.concatenate(
        [[0.0, math.log(float(noise.noise.detach()))], np.log(kernel.lengthscale.detach().numpy().ravel())]
    )
    # 2) within the constraints of the model, which would otherwise refuse what was found
    bounds = [(None, None), (math.log(float(noise.raw_noise_constraint.lower_bound)) + 1e-6, 8.0)]
    least = math.log(float(kernel.raw_lengthscale_constraint.lower_bound)) + 1e-6
    bounds += [(least, 12.0)] * (len(start) - 2)
    # 3) climb, and give the model what was found
    found = minimize(
        posterior, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}
    )
    if not math.isfinite(found.fun):
        raise np.linalg.LinAlgError("no factorable covariance")
    model.mean_module.initialize(constant=float(found.x[0]))
    noise.initialize(noise=math.exp(found.x[1]))
    kernel.initialize(lengthscale=_tensor(np.exp(found.x[2:])).reshape(kernel.lengthscale.shape))
    return -float(found.fun)


class _LogPosterior:
    """Negative log posterior and gradient in (mean, log noise, log length scales).

    Sizes in comments: n observations, d features.
    """

    def __init__(self, model: SingleTaskGP) -> None:
        self._X: Array = model.train_inputs[0].numpy()  # n x d
        self._y: Array = model.train_targets.numpy()  # n, standardized
        lengthscale = model.covar_module.lengthscale_prior
        noise = model.likelihood.noise_covar.noise_prior
        self._lengthscale = float(lengthscale.loc), float(lengthscale.scale)
        self._noise = float(noise.loc), float(noise.scale)

    def __call__(self, z: Array) -> tuple[float, Array]:
        # 1) RBF kernel, distances in Gram form
        noise, S = math.exp(z[1]), self._X / np.exp(z[2:])  # S: n x d
        squares = (S * S).sum(axis=1)  # n
        K = np.exp(-0.5 * np.maximum(squares[:, None] + squares[None, :] - 2.0 * S @ S.T, 0.0))
        # 2) its Cholesky factor; where there is none, the search for the optimum turns back
        try:
            L = np.linalg.cholesky(K + noise * np.eye(len(K)))  # n x n
        except np.linalg.LinAlgError:
            return math.inf, np.zeros_like(z)
        # 3) L⁻¹(y - mean), and α = K⁻¹(y - mean)
        inverse = np.linalg.inv(L)  # n x n
        white = inverse @ (self._y - z[0])  # n
        alpha = inverse.T @ white  # n
        # 4) docs/references.md: Rasmussen 2006, eq. 5.9, and on to each length scale
        dK = 0.5 * (np.outer(alpha, alpha) - inverse.T @ inverse)  # n x n
        D = dK * K  # n x n
        # d
        by_lengthscale = 2.0 * ((D.sum(axis=1)[:, None] * S * S).sum(axis=0) - (S * (D @ S)).sum(axis=0))
        # 5) log marginal likelihood, -½ |L⁻¹y|² - log |L|, and its gradient
        value = -0.5 * float(white @ white) - float(np.log(np.diag(L)).sum())
        gradient = np.concatenate([[alpha.sum(), noise * np.trace(dK)], by_lengthscale])  # 2 + d
        # 6) log-normal densities of the parameters themselves, as GPyTorch takes them
        for part, (centre, scale) in ((slice(1, 2), self._noise), (slice(2, None), self._lengthscale)):
            away = (z[part] - centre) / scale
            value += float((-z[part] - 0.5 * away**2).sum())
            gradient[part] += -1.0 - away / scale
        return -value, -gradient


def _tensor(values: Array) -> Tensor:
    import torch

    return torch.as_tensor(values)
