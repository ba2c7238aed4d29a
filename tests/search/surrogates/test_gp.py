"""The fit of ``gp`` is BoTorch's own optimum, found faster."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Standardize
from gpytorch.mlls import ExactMarginalLogLikelihood
from scipy.optimize import check_grad  # type: ignore[import-untyped]
from torch import Tensor

from milp_ray.search.surrogates.gp import _LogPosterior, maximize
from tests.search.surrogates.test_surrogates import D, data


def log_posterior(model: SingleTaskGP) -> float:
    """By GPyTorch."""
    model.train()
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    with torch.no_grad():
        return float(mll(model(*model.train_inputs), model.train_targets)) * len(model.train_targets)


def made(X: Tensor, Y: Tensor) -> SingleTaskGP:
    return SingleTaskGP(X, Y, outcome_transform=Standardize(1))


@pytest.mark.parametrize("n", [6, 25, 60])
@pytest.mark.parametrize("output", [0, 1])
def test_as_probable_as_botorchs_optimum(n: int, output: int) -> None:
    X, Y = data(n, seed=n)
    ours, theirs = (made(X, Y[:, output : output + 1]) for _ in range(2))
    maximize(ours)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(theirs.likelihood, theirs))
    assert log_posterior(ours) > log_posterior(theirs) - 0.05


def test_the_gradient_is_the_derivative() -> None:
    X, Y = data(15)
    posterior = _LogPosterior(made(X, Y[:, :1]))
    rng = np.random.default_rng(0)
    for _ in range(3):
        z = rng.normal(size=2 + D) * 0.5
        off = check_grad(lambda z: posterior(z)[0], lambda z: posterior(z)[1], z)
        assert off < 1e-4 * max(1.0, float(np.abs(posterior(z)[1]).max()))


def test_differences_are_those_of_gpytorch() -> None:
    X, Y = data(12)
    model = made(X, Y[:, :1])
    posterior = _LogPosterior(model)
    theirs, ours = [], []
    for seed in range(3):
        z = np.random.default_rng(seed).normal(size=2 + D) * 0.3
        model.mean_module.initialize(constant=z[0])
        model.likelihood.noise_covar.initialize(noise=float(np.exp(z[1])))
        model.covar_module.initialize(lengthscale=torch.as_tensor(np.exp(z[2:])).reshape(1, -1))
        theirs.append(log_posterior(model))
        ours.append(-posterior(z)[0])
    assert np.diff(ours) == pytest.approx(np.diff(theirs), rel=1e-5, abs=1e-4)
