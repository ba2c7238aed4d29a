"""The posteriors that the acquisition reads are those of the BoTorch models."""

from __future__ import annotations

import pytest
import torch
from gpytorch.kernels import PeriodicKernel

from milp_ray.search.acquisition.posterior import GaussianOutput
from milp_ray.search.surrogates import ModelSurrogate, make_surrogate, surrogate_names
from tests.search.surrogates.test_surrogates import data, surrogate

MODELS = [name for name in surrogate_names() if isinstance(make_surrogate(name), ModelSurrogate)]


@pytest.mark.parametrize("name", MODELS)
def test_moments_are_botorchs(name: str) -> None:
    X, Y = data(14)
    at = data(6, seed=9)[0]
    for model in surrogate(name).fit(X, Y, 0).model.models:
        mean, covariance = GaussianOutput(model).moments(torch.cat([at, X[:2]]))
        with torch.no_grad():
            theirs = model.posterior(torch.cat([at, X[:2]])).distribution
        assert torch.allclose(mean, theirs.mean.reshape(mean.shape), rtol=1e-5, atol=1e-5)
        scale = float(covariance.abs().max())
        assert torch.allclose(
            covariance, theirs.covariance_matrix.reshape(covariance.shape), atol=1e-4 * scale
        )


@pytest.mark.parametrize("name", MODELS)
def test_candidates_given_known_values_follow_from_the_joint(name: str) -> None:
    X, Y = data(12)
    output = GaussianOutput(surrogate(name).fit(X, Y, 0).model.models[1])
    known, candidates = data(4, seed=3)[0], data(5, seed=4)[0]
    base_samples = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    values = output.posterior_samples(known, base_samples)
    centre, spread = output.condition_on(known, base_samples)(candidates)
    mean, covariance = output.moments(torch.cat([known, candidates]))
    for s in range(output.components):
        K = covariance[s, :4, :4] + 1e-9 * torch.eye(4, dtype=torch.double)
        gain = torch.linalg.solve(K, covariance[s, :4, 4:]).T
        expected = mean[s, 4:] + (values[s] - mean[s, :4]) @ gain.T
        left = covariance[s, 4:, 4:] - gain @ covariance[s, :4, 4:]
        assert torch.allclose(centre[s], expected, rtol=1e-3, atol=1e-2)
        assert torch.allclose(spread[s] ** 2, left.diagonal(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_an_observation_is_predicted_as_from_the_others_alone(name: str) -> None:
    X, Y = data(12)
    for model in surrogate(name).fit(X, Y, 0).model.models:
        output = GaussianOutput(model)
        mean, deviation = output.leave_one_out()
        for left in (0, 5, 11):
            kept = [index for index in range(12) if index != left]
            others = GaussianOutput(model)
            covariance = others._root @ others._root.mT  # S x n x n, noise included
            y = others._mean[:, None] + (others._root @ others._white).squeeze(-1)  # S x n
            K, k = covariance[:, kept][:, :, kept], covariance[:, kept, left]
            weights = torch.linalg.solve(K, k.unsqueeze(-1)).squeeze(-1)  # S x (n - 1)
            centre = others._mean + (weights * (y[:, kept] - others._mean[:, None])).sum(-1)
            variance = covariance[:, left, left] - (weights * k).sum(-1)
            expected = centre.mean()
            spread = (variance + (centre - expected).square()).mean().sqrt()
            assert mean[left] == pytest.approx(float(others._offset + others._factor * expected), abs=1e-5)
            assert deviation[left] == pytest.approx(float(others._factor * spread), rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_means_are_those_of_the_moments(name: str) -> None:
    X, Y = data(14)
    at = data(6, seed=9)[0]
    for model in surrogate(name).fit(X, Y, 0).model.models:
        output = GaussianOutput(model)
        assert torch.allclose(output.means(at), output.moments(at)[0].mean(dim=0), rtol=1e-6, atol=1e-8)


def test_a_kernel_that_is_not_covered_is_refused() -> None:
    model = surrogate("gp").fit(*data(), 0).model.models[0]
    model.covar_module = PeriodicKernel()
    with pytest.raises(TypeError, match="PeriodicKernel"):
        GaussianOutput(model)
