"""Gaussian process posteriors of fitted BoTorch models, for an acquisition over many candidates.

A BoTorch posterior object per chunk of candidates costs more in bookkeeping than in arithmetic, and
computes covariances among candidates that nothing here reads. An :class:`Output` factors everything
that does not depend on candidates once, so that a candidate costs one row of a matrix product.
Values are those of the BoTorch model: tests/search/acquisition/test_posterior.py holds each
surrogate's to it.

Kernels covered: RBF and Matérn 5/2 with a length scale per input, with or without an output scale;
constant mean; a linear outcome transform (Standardize). That is all that the surrogates here fit.
Why the project writes a kernel more than once: docs/search.md.

Sizes in comments: n training points of d features, k known points, c candidates, D ≥ d input
columns; S mixture components, M samples a component.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from gpytorch.utils.cholesky import psd_safe_cholesky
from torch import Tensor

if TYPE_CHECKING:
    from botorch.models.model import Model

_JITTER = 1e-6  # of the values at known points, relative to their variance


class ConditionedPosterior(Protocol):
    """An output given samples of its values at k known points."""

    def __call__(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``S x M x c``, a sample each, and deviations ``S x c`` at ``c x D`` candidates."""
        ...


class Output(Protocol):
    """One objective, to be maximised, as a mixture of S Gaussians (S = 1: not a mixture)."""

    @property
    def components(self) -> int:
        """S."""
        ...

    def posterior_samples(self, X: Tensor, base_samples: Tensor) -> Tensor:
        """``S x M x k`` joint samples at ``k x D`` points from ``M x k`` base samples."""
        ...

    def condition_on(self, X: Tensor, base_samples: Tensor) -> ConditionedPosterior:
        """This output given that its values at ``X`` are ``posterior_samples(X, base_samples)``."""
        ...


@dataclass(frozen=True)
class ExactColumn:
    """An exact objective, handed through from an input column without doubt."""

    column: int

    @property
    def components(self) -> int:
        """1: known exactly."""
        return 1

    def posterior_samples(self, X: Tensor, base_samples: Tensor) -> Tensor:
        """See :class:`Output`."""
        return X[:, self.column].expand(1, len(base_samples), len(X))  # 1 x M x k

    def condition_on(self, X: Tensor, base_samples: Tensor) -> ConditionedPosterior:
        """See :class:`Output`; nothing more is known than the column."""
        M = len(base_samples)

        def conditioned(X: Tensor) -> tuple[Tensor, Tensor]:
            column = X[:, self.column]  # c
            return column.expand(1, M, len(X)), torch.zeros(1, len(X), dtype=X.dtype)  # 1 x M x c, 1 x c

        return conditioned


class GaussianOutput:
    """A fitted BoTorch model as an :class:`Output`; reads the first d input columns.

    Args:
        model: SingleTaskGP, EnsembleMapSaasSingleTaskGP or SaasFullyBayesianSingleTaskGP,
            in eval mode.

    Raises:
        TypeError: its kernel or mean is not covered.
    """

    def __init__(self, model: Model) -> None:
        with torch.no_grad():
            # 1) hyperparameters, a row a component of the mixture
            kernel = model.covar_module
            base = getattr(kernel, "base_kernel", kernel)
            self._matern = _is_matern(base)
            self._lengthscale: Tensor = base.lengthscale.detach().reshape(
                -1, base.lengthscale.shape[-1]
            )  # S x d
            S, self._d = self._lengthscale.shape
            self._components: int = S
            scale = getattr(kernel, "outputscale", torch.ones(1, dtype=torch.double)).detach()
            self._outputscale: Tensor = scale.reshape(-1).expand(S)  # S
            self._mean: Tensor = model.mean_module.constant.detach().reshape(-1).expand(S)  # S
            self._offset, self._factor = _outcome(model)
            # 2) training data: the same inputs in each component; BoTorch may have copied them
            X = model.train_inputs[0].detach()  # n x d or S x n x d
            self._X: Tensor = X.reshape(-1, *X.shape[-2:])[0]  # n x d
            residual = model.train_targets.detach().reshape(-1, len(self._X)) - self._mean[:, None]  # S x n
            noise = model.likelihood.noise.detach().reshape(-1).expand(S)  # S
            # 3) the Cholesky factor L of their covariance, and L⁻¹(y - mean), which gives all means
            covariance = self._kernel(self._scaled(self._X), self._scaled(self._X))  # S x n x n
            covariance = covariance + noise[:, None, None] * torch.eye(len(self._X), dtype=torch.double)
            self._root = psd_safe_cholesky(covariance)  # S x n x n
            self._white = torch.linalg.solve_triangular(  # S x n x 1
                self._root, residual.expand(S, -1).unsqueeze(-1), upper=False
            )

    @property
    def components(self) -> int:
        """S, members of the mixture."""
        return self._components

    def moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``S x k`` and covariance ``S x k x k`` at ``k x D`` points."""
        mean, covariance, _ = self._joint(self._scaled(X[:, : self._d]))
        return self._offset + self._factor * mean, self._factor**2 * covariance

    def means(self, X: Tensor) -> Tensor:
        """Means ``k`` at ``k x D`` points, averaged over the mixture."""
        K = self._kernel(self._scaled(self._X), self._scaled(X[:, : self._d]))  # S x n x k
        weights = torch.linalg.solve_triangular(self._root.mT, self._white, upper=True)  # S x n x 1
        mean = self._mean[:, None] + (K.mT @ weights).squeeze(-1)  # S x k
        averaged: Tensor = self._offset + self._factor * mean.mean(dim=0)  # k
        return averaged

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        """What each observation is predicted as from all others: means ``n``, deviations ``n``.

        Predictions are of measurements, noise included, each a mixture's by its first two moments.
        Hyperparameters stay those of all observations. docs/references.md: Rasmussen 2006,
        equation 5.12.
        """
        # 1) of each component: K⁻¹, and K⁻¹(y - mean)
        inverse = torch.cholesky_inverse(self._root)  # S x n x n
        weights = torch.linalg.solve_triangular(self._root.mT, self._white, upper=True)  # S x n x 1
        # 2) an observation less its residual, and the variance that the others leave
        variance = inverse.diagonal(dim1=-2, dim2=-1).reciprocal()  # S x n
        y = self._mean[:, None] + (self._root @ self._white).squeeze(-1)  # S x n
        mean = y - weights.squeeze(-1) * variance  # S x n
        # 3) moments of the mixture, in the units of the data
        centre = mean.mean(dim=0)  # n
        spread = (variance + (mean - centre).square()).mean(dim=0).sqrt()  # n
        return self._offset + self._factor * centre, self._factor * spread

    def posterior_samples(self, X: Tensor, base_samples: Tensor) -> Tensor:
        """See :class:`Output`."""
        mean, root, _ = self._at_known(self._scaled(X[:, : self._d]))  # S x k, S x k x k
        values = mean[:, None, :] + torch.einsum("sij,mj->smi", root, base_samples)  # S x M x k
        return self._offset + self._factor * values

    def condition_on(self, X: Tensor, base_samples: Tensor) -> ConditionedPosterior:
        """See :class:`Output`.

        The values at known points are the product of a Cholesky factor and base samples. These base
        samples are therefore what solving for the values would give back, and no sample is solved
        for.
        """
        # 1) what is known at the k points from the training data
        known = self._scaled(X[:, : self._d])  # S x k x d
        _, root, cross = self._at_known(known)  # S x k x k, S x n x k
        S, n, k, M = self._components, len(self._X), X.shape[0], len(base_samples)
        # 2) the Cholesky factor of training data and known values together, inverted once
        joint_root = torch.zeros(S, n + k, n + k, dtype=torch.double)  # S x (n + k) x (n + k)
        joint_root[:, :n, :n], joint_root[:, n:, :n] = self._root, cross.transpose(1, 2)
        joint_root[:, n:, n:] = root
        inverse = torch.linalg.solve_triangular(joint_root, torch.eye(n + k, dtype=torch.double), upper=False)
        # 3) whitened residuals: L⁻¹(y - mean) of training data, base samples of known points
        white = torch.cat([self._white.expand(S, n, M), base_samples.T.expand(S, k, M)], dim=1)
        white = white.transpose(1, 2)  # S x (n + k) x M -> S x M x (n + k)
        points = torch.cat([self._scaled(self._X), known], dim=1)  # S x (n + k) x d

        def conditioned(X: Tensor) -> tuple[Tensor, Tensor]:
            # 4) of a candidate only its whitened covariance with all these points is new
            K = self._kernel(points, self._scaled(X[:, : self._d]))  # S x (n + k) x c
            W = inverse @ K  # S x (n + k) x c
            # 5) its mean in each sample, and what is left of its variance, the same in all samples
            mean = self._mean[:, None, None] + white @ W  # S x M x c
            variance = (self._outputscale[:, None] - W.square().sum(dim=1)).clamp_min(0.0)  # S x c
            # 6) back to the units of the data
            return self._offset + self._factor * mean, self._factor * variance.sqrt()

        return conditioned

    def _at_known(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean ``S x k``, Cholesky factor ``S x k x k``, whitened covariance ``S x n x k``."""
        mean, covariance, cross = self._joint(points)
        # Without noise, points that were observed twice make the covariance singular.
        size = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)  # S
        jitter = _JITTER * size[:, None, None] * torch.eye(points.shape[1], dtype=torch.double)  # S x k x k
        return mean, psd_safe_cholesky(covariance + jitter), cross

    def _joint(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The noise-free joint posterior at ``S x k x d`` scaled points.

        Returns:
            Mean ``S x k``, covariance ``S x k x k``, and the points' whitened cross-covariance
            ``S x n x k`` with the training data.
        """
        K = self._kernel(self._scaled(self._X), points)  # S x n x k
        cross = torch.linalg.solve_triangular(self._root, K, upper=False)  # S x n x k
        mean = self._mean[:, None] + (cross.transpose(1, 2) @ self._white).squeeze(-1)  # S x k
        return mean, self._kernel(points, points) - cross.transpose(1, 2) @ cross, cross

    def _scaled(self, X: Tensor) -> Tensor:
        """``k x d`` inputs in length scales, ``S x k x d``."""
        return X / self._lengthscale[:, None, :]

    def _kernel(self, A: Tensor, B: Tensor) -> Tensor:
        """``S x a x b`` covariances of scaled inputs ``S x a x d`` and ``S x b x d``."""
        # 1) |A - B|² = |A|² + |B|² - 2 A·B takes no a x b x d tensor; rounding may leave it below 0
        squares = A.square().sum(-1)[:, :, None] + B.square().sum(-1)[:, None, :]  # S x a x b
        distance2 = torch.baddbmm(squares, A, B.transpose(1, 2), alpha=-2.0).clamp_min_(0.0)  # S x a x b
        outputscale = self._outputscale[:, None, None]  # S x 1 x 1
        # 2) RBF: e^(-r² / 2)
        if not self._matern:
            return distance2.mul_(-0.5).exp_().mul_(outputscale)
        # 3) Matérn 5/2: (1 + r + r² / 3) e^-r with r in units of 1 / √5
        r = distance2.mul_(5.0).sqrt_()
        decay = torch.exp(-r)
        return r.square().div_(3.0).add_(r).add_(1.0).mul_(decay).mul_(outputscale)


def _is_matern(kernel: object) -> bool:
    from gpytorch.kernels import MaternKernel, RBFKernel

    if isinstance(kernel, MaternKernel) and math.isclose(kernel.nu, 2.5):
        return True
    if isinstance(kernel, RBFKernel):
        return False
    raise TypeError(f"{type(kernel).__name__} is not a kernel that a surrogate may use: RBF or Matérn 5/2")


def _outcome(model: Model) -> tuple[float, float]:
    """Offset and factor from the model's outputs to the units of the data."""
    transform = getattr(model, "outcome_transform", None)
    if transform is None:
        return 0.0, 1.0
    return float(transform.means.reshape(-1)[0]), float(transform.stdvs.reshape(-1)[0])
