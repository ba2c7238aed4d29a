"""Gaussian process posteriors of fitted BoTorch models, as an acquisition over many candidates wants them.

A BoTorch posterior object per chunk of candidates costs more in bookkeeping than in arithmetic, and computes
covariances among candidates that nothing here reads. An :class:`Output` factors everything that does not
depend on candidates once, so that a candidate costs one row of a matrix product. Values are those of the
BoTorch model: tests/search/acquisition/test_posterior.py holds each surrogate's to it.

Kernels covered: RBF and Matérn 5/2 with a length scale per input, with or without an output scale; constant
mean; a linear outcome transform (Standardize). That is all that the surrogates here fit.
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


class Conditioned(Protocol):
    """An output given draws of its values at k known points."""

    def __call__(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean per draw, ``S x M x c``, and standard deviation, ``S x c``, at ``c x D`` candidates."""
        ...


class Output(Protocol):
    """One objective, to be maximised, as a mixture of S Gaussian components (S = 1: not a mixture)."""

    @property
    def components(self) -> int:
        """S."""
        ...

    def draws(self, X: Tensor, normal: Tensor) -> Tensor:
        """``S x M x k`` joint draws at ``k x D`` points from ``M x k`` standard normal numbers."""
        ...

    def given(self, X: Tensor, normal: Tensor) -> Conditioned:
        """This output given that its values at ``X`` are ``draws(X, normal)``."""
        ...


@dataclass(frozen=True)
class ExactColumn:
    """An objective that follows from the placement: handed through from an input column, without doubt."""

    column: int

    @property
    def components(self) -> int:
        """1: known exactly."""
        return 1

    def draws(self, X: Tensor, normal: Tensor) -> Tensor:
        """See :class:`Output`."""
        return X[:, self.column].expand(1, len(normal), len(X))

    def given(self, X: Tensor, normal: Tensor) -> Conditioned:
        """See :class:`Output`; nothing more is known than the column."""
        count = len(normal)

        def at(X: Tensor) -> tuple[Tensor, Tensor]:
            column = X[:, self.column]
            return column.expand(1, count, len(X)), torch.zeros(1, len(X), dtype=X.dtype)

        return at


class GaussianOutput:
    """A fitted BoTorch model as an :class:`Output`; reads the first d input columns.

    Args:
        model: SingleTaskGP, EnsembleMapSaasSingleTaskGP or SaasFullyBayesianSingleTaskGP, in eval mode.

    Raises:
        TypeError: its kernel or mean is not covered.
    """

    def __init__(self, model: Model) -> None:
        with torch.no_grad():
            kernel = model.covar_module
            base = getattr(kernel, "base_kernel", kernel)
            self._matern = _is_matern(base)
            self._lengthscale: Tensor = base.lengthscale.detach().reshape(-1, base.lengthscale.shape[-1])
            S, self._d = self._lengthscale.shape
            self._components: int = S
            scale = getattr(kernel, "outputscale", torch.ones(1, dtype=torch.double)).detach()
            self._variance: Tensor = scale.reshape(-1).expand(S)
            self._mean: Tensor = model.mean_module.constant.detach().reshape(-1).expand(S)
            self._offset, self._factor = _outcome(model)
            X = model.train_inputs[0].detach()
            self._X: Tensor = X.reshape(-1, *X.shape[-2:])[0]
            residual = model.train_targets.detach().reshape(-1, len(self._X)) - self._mean[:, None]
            noise = model.likelihood.noise.detach().reshape(-1).expand(S)
            covariance = self._kernel(self._scaled(self._X), self._scaled(self._X))
            covariance = covariance + noise[:, None, None] * torch.eye(len(self._X), dtype=torch.double)
            self._root = psd_safe_cholesky(covariance)
            self._white = torch.linalg.solve_triangular(
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

    def draws(self, X: Tensor, normal: Tensor) -> Tensor:
        """See :class:`Output`."""
        mean, root, _ = self._known(self._scaled(X[:, : self._d]))
        values = mean[:, None, :] + torch.einsum("sij,mj->smi", root, normal)
        return self._offset + self._factor * values

    def given(self, X: Tensor, normal: Tensor) -> Conditioned:
        """See :class:`Output`."""
        points = self._scaled(X[:, : self._d])
        _, root, cross = self._known(points)
        S, n, k = self._components, len(self._X), X.shape[0]
        # The Cholesky factor of training data and known values together, inverted once.
        whole = torch.zeros(S, n + k, n + k, dtype=torch.double)
        whole[:, :n, :n], whole[:, n:, :n], whole[:, n:, n:] = self._root, cross.transpose(1, 2), root
        inverse = torch.linalg.solve_triangular(whole, torch.eye(n + k, dtype=torch.double), upper=False)
        weights = torch.cat(
            [self._white.expand(S, n, len(normal)), normal.T.expand(S, k, len(normal))], dim=1
        ).transpose(1, 2)
        places = torch.cat([self._scaled(self._X), points], dim=1)

        def at(X: Tensor) -> tuple[Tensor, Tensor]:
            K = self._kernel(places, self._scaled(X[:, : self._d]))
            W = inverse @ K
            centre = self._mean[:, None, None] + weights @ W
            left = (self._variance[:, None] - W.square().sum(dim=1)).clamp_min(0.0)
            return self._offset + self._factor * centre, self._factor * left.sqrt()

        return at

    def _known(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean ``S x k``, Cholesky factor ``S x k x k`` and whitened cross-covariance ``S x n x k``."""
        mean, covariance, cross = self._joint(points)
        size = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)
        jitter = _JITTER * size[:, None, None] * torch.eye(points.shape[1], dtype=torch.double)
        return mean, psd_safe_cholesky(covariance + jitter), cross

    def _joint(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        K = self._kernel(self._scaled(self._X), points)
        cross = torch.linalg.solve_triangular(self._root, K, upper=False)
        mean = self._mean[:, None] + (cross.transpose(1, 2) @ self._white).squeeze(-1)
        return mean, self._kernel(points, points) - cross.transpose(1, 2) @ cross, cross

    def _scaled(self, X: Tensor) -> Tensor:
        """``S x k x d``."""
        return X / self._lengthscale[:, None, :]

    def _kernel(self, A: Tensor, B: Tensor) -> Tensor:
        """``S x a x b`` covariances of scaled inputs; distances in Gram form."""
        squares = A.square().sum(-1)[:, :, None] + B.square().sum(-1)[:, None, :]
        distance2 = torch.baddbmm(squares, A, B.transpose(1, 2), alpha=-2.0).clamp_min_(0.0)
        variance = self._variance[:, None, None]
        if not self._matern:
            return distance2.mul_(-0.5).exp_().mul_(variance)
        r = distance2.mul_(5.0).sqrt_()
        decay = torch.exp(-r)
        return r.square().div_(3.0).add_(r).add_(1.0).mul_(decay).mul_(variance)


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
