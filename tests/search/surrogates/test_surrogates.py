"""The contract of every registered surrogate with a model, and what saas alone promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from milp_ray.errors import SearchError
from milp_ray.search.surrogates import ModelSurrogate, make_surrogate, nuts, register, surrogate_names
from milp_ray.search.surrogates.base import SurrogateFailed
from milp_ray.search.surrogates.gp import Gp
from tests.search.problems import TINY_SAAS

D = 5  # as the features of problems.small_space: one compiled sampler serves all tests
MODELS = [name for name in surrogate_names() if isinstance(make_surrogate(name), ModelSurrogate)]
every_model = pytest.mark.parametrize("name", MODELS)


def surrogate(name: str, **changes: object) -> ModelSurrogate:
    options = {**TINY_SAAS, **changes} if name == "saas" else {}
    made = make_surrogate(name, options)
    assert isinstance(made, ModelSurrogate)
    return made


def data(n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n x D inputs and n x 2 outputs: one follows input 0, one is noisy and on another scale."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, D, generator=generator, dtype=torch.double)
    noise = torch.randn(n, generator=generator, dtype=torch.double)
    return X, torch.stack([torch.sin(3 * X[:, 0]), 100 + 30 * X[:, 1] + noise], dim=1)


def predicted(name: str, X: Tensor, Y: Tensor, seed: int = 0) -> list[Tensor]:
    fitted = surrogate(name).fit(X, Y, seed)
    posteriors = [model.posterior(X) for model in fitted.model.models]
    return [torch.cat([p.mean.detach().flatten(), p.variance.detach().flatten()]) for p in posteriors]


def test_the_models_are_known() -> None:
    assert {"gp", "saas"} <= set(MODELS)
    assert set(surrogate_names()) >= {"gp", "saas", "random", "sobol"}


@every_model
def test_posterior_shapes_follow_the_marker(name: str) -> None:
    X, Y = data()
    fitted = surrogate(name).fit(X, Y, 0)
    assert fitted.model.num_outputs == 2
    assert fitted.source == name
    for model in fitted.model.models:
        distribution = model.posterior(X[:3]).distribution
        assert distribution.mean.reshape(-1, 3).shape == (fitted.components, 3)
        assert distribution.covariance_matrix.reshape(-1, 3, 3).shape == (fitted.components, 3, 3)


@every_model
def test_predictions_are_in_the_units_of_the_data(name: str) -> None:
    X, Y = data(20)
    for index, model in enumerate(surrogate(name).fit(X, Y, 0).model.models):
        mean = model.posterior(X).distribution.mean.reshape(-1, len(X)).mean(0).detach()
        assert float((mean - Y[:, index]).abs().mean()) < 0.5 * float(Y[:, index].std())


@every_model
@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_observations(name: str, n: int) -> None:
    assert all(bool(values.isfinite().all()) for values in predicted(name, *data(n)))


@every_model
@pytest.mark.parametrize("value", [0.0, -3.0, 1e6])
def test_constant_outcomes(name: str, value: float) -> None:
    X, Y = data()
    Y[:, 0] = value
    found = predicted(name, X, Y)
    assert all(bool(values.isfinite().all()) for values in found)


@every_model
def test_duplicates_that_agree_and_that_contradict(name: str) -> None:
    X, Y = data(6)
    found = predicted(name, X.repeat(3, 1), torch.cat([Y, Y, Y + 1]))
    assert all(bool(values.isfinite().all()) for values in found)


@every_model
def test_deterministic_by_seed_and_without_touching_the_global_generators(name: str) -> None:
    X, Y = data()
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[union-attr,index]
    first = predicted(name, X, Y, seed=3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[union-attr,index]
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, predicted(name, X, Y, seed=3), strict=True))
    predicted(name, X, Y, seed=2**62 + 1)


@every_model
@pytest.mark.parametrize("fault", ["nan x", "inf y", "outside", "float32", "shapes", "empty"])
def test_unusable_data_are_refused(name: str, fault: str) -> None:
    X, Y = data()
    if fault == "nan x":
        X[0, 0] = torch.nan
    elif fault == "inf y":
        Y[0, 0] = torch.inf
    elif fault == "outside":
        X[0, 0] = 1.5
    elif fault == "float32":
        X = X.float()
    elif fault == "shapes":
        Y = Y[:-1]
    else:
        X, Y = X[:0], Y[:0]
    with pytest.raises(ValueError, match=r"expected|finite|cube"):
        surrogate(name).fit(X, Y, 0)


def test_the_registry_refuses_duplicates_and_lists_what_it_knows() -> None:
    with pytest.raises(ValueError, match="registered already"):
        register("gp")(Gp)
    with pytest.raises(SearchError, match="ax:fast, ax:quality, gp, map_saas, random, saas, sobol"):
        make_surrogate("nothing like it")
    with pytest.raises(SearchError, match="preset, warmup, samples, thinning, keep"):
        make_surrogate("saas", {"warmups": 3})


@pytest.mark.parametrize(
    ("samples", "thinning", "keep", "kept"),
    [(64, 4, 8, 8), (64, 16, 8, 4), (8, 2, 8, 4), (1, 4, 8, 1), (64, 1, 1, 1)],
)
def test_how_many_draws_are_kept(samples: int, thinning: int, keep: int, kept: int) -> None:
    made = make_surrogate("saas", {"samples": samples, "thinning": thinning, "keep": keep})
    indices = made._kept()  # type: ignore[union-attr]
    assert len(set(indices)) == kept
    assert all(0 <= index < samples and index % thinning == 0 for index in indices)


def test_padding_does_not_change_the_density() -> None:
    X, Y = data(7)
    z = np.linspace(-1, 1, 4 + D)
    with nuts.jax.enable_x64(True):
        density = nuts.jax.jit(nuts._potential)
        plain = density(z, X.numpy(), Y[:, 0].numpy(), np.ones(7))
        padded_X, padded_Y, mask = np.zeros((32, D)), np.zeros(32), np.zeros(32)
        padded_X[:7], padded_Y[:7], mask[:7] = X.numpy(), Y[:, 0].numpy(), 1.0
        padded = density(z, padded_X, padded_Y, mask)
    assert float(padded) == pytest.approx(float(plain), rel=1e-10)


def test_the_density_is_that_of_botorchs_model() -> None:
    """Log joint differences, which need no normalisation, against numpyro on BoTorch's model."""
    from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP
    from numpyro.infer.util import log_density

    X, Y = data(9)
    y = (Y[:, :1] - Y[:, :1].mean()) / Y[:, :1].std()
    rng = np.random.default_rng(0)

    def sites(u: nuts.jax.Array) -> dict[str, nuts.jax.Array]:
        theta = nuts._constrained(u)
        tau = 0.1 * nuts.jnp.exp(nuts._log_half_cauchy(u[3]))
        return {
            "mean": theta.mean,
            "outputscale": theta.outputscale,
            "noise": theta.noise - nuts.MIN_NOISE,
            "kernel_tausq": tau,
            "_kernel_inv_length_sq": theta.inverse2 / tau,
        }

    def logs(u: nuts.jax.Array) -> nuts.jax.Array:
        found = sites(u)
        rest = [nuts.jnp.log(found[name]) for name in ("outputscale", "noise", "kernel_tausq")]
        return nuts.jnp.concatenate(
            [nuts.jnp.stack([found["mean"], *rest]), nuts.jnp.log(found["_kernel_inv_length_sq"])]
        )

    with nuts.jax.enable_x64(True):
        theirs = SaasFullyBayesianSingleTaskGP(X, y).pyro_model
        density = nuts.jax.jit(lambda values: log_density(theirs.sample, (), {}, values)[0])
        ours = nuts.jax.jit(lambda u: -nuts._potential(u, X.numpy(), y[:, 0].numpy(), np.ones(9)))
        # Volume: our coordinates to logs by differentiation, logs to the sites by their values.
        to_logs = nuts.jax.jit(lambda u: nuts.jnp.linalg.slogdet(nuts.jax.jacobian(logs)(u))[1])
        ours_values, their_values = [], []
        for _ in range(6):
            u = rng.normal(size=4 + D)
            their_values.append(float(density(sites(u))) + float(to_logs(u)) + float(logs(u)[1:].sum()))
            ours_values.append(float(ours(u)))
    assert np.diff(ours_values) == pytest.approx(np.diff(their_values), rel=1e-3, abs=1e-2)


def test_the_written_out_gradient_is_the_derivative() -> None:
    X, Y = data(9)
    padded_X, padded_Y, mask = np.zeros((32, D)), np.zeros(32), np.zeros(32)
    padded_X[:9], padded_Y[:9], mask[:9] = X.numpy(), Y[:, 0].numpy(), 1.0
    with nuts.jax.enable_x64(True):
        from jax.test_util import check_grads

        u = np.random.default_rng(1).normal(size=4 + D)
        check_grads(
            lambda u: nuts._potential(u, padded_X, padded_Y, mask), (u,), order=1, modes=["rev"], rtol=1e-5
        )


def test_draws_are_turned_into_parameters_the_same_way_in_both_places() -> None:
    u = np.random.default_rng(2).normal(size=(5, 4 + D)) * 2
    rows = nuts._constrained_rows(u)
    with nuts.jax.enable_x64(True):
        for index in range(5):
            theta = nuts._constrained(nuts.jnp.asarray(u[index]))
            for name in ("mean", "outputscale", "noise"):
                assert rows[name][index] == pytest.approx(float(getattr(theta, name)), rel=1e-9)
            assert rows["lengthscale"][index] ** -2 == pytest.approx(np.asarray(theta.inverse2), rel=1e-9)


def test_one_program_serves_a_bucket() -> None:
    assert [nuts.bucket_of(n) for n in (1, 32, 33, 64, 200)] == [32, 32, 64, 64, 224]
    surrogate("saas").fit(*data(4), 0)
    before = nuts._program.cache_info().misses
    surrogate("saas").fit(*data(31), 0)
    assert nuts._program.cache_info().misses == before


def test_saas_finds_the_input_that_matters() -> None:
    X, Y = data(30)
    draws = nuts.sample_saas(
        X.numpy(), ((Y[:, 0] - Y[:, 0].mean()) / Y[:, 0].std()).numpy(), seed=0, warmup=8, samples=8
    )
    lengths = np.median(draws["lengthscale"], axis=0)
    assert lengths[0] == lengths.min()


def test_saas_falls_back_to_gp_after_three_failures_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(X: object, Y: object, **settings: object) -> dict[str, object]:
        calls.append(settings["seed"])
        if len(calls) == 2:
            raise RuntimeError("XLA gave up")
        return {name: np.full(8, np.nan) for name in ("mean", "outputscale", "noise")}

    monkeypatch.setattr(nuts, "sample_saas", broken)
    fitted = surrogate("saas").fit(*data(), 0)
    assert len(set(calls)) == 3
    assert fitted.source == "gp"
    assert fitted.components == 1
    assert "3 chains" in fitted.notes[0]


def test_saas_recovers_from_a_single_bad_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = nuts.sample_saas, []

    def once(*arguments: object, **settings: object) -> dict[str, object]:
        calls.append(1)
        found = real(*arguments, **settings)  # type: ignore[arg-type]
        return {k: v * np.nan for k, v in found.items()} if len(calls) == 1 else found

    monkeypatch.setattr(nuts, "sample_saas", once)
    fitted = surrogate("saas").fit(*data(), 0)
    assert fitted.source == "saas"
    assert len(calls) == 3  # two outputs, one repeated


def test_an_unfittable_gp_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    from milp_ray.search.surrogates import gp

    def broken(*_: object) -> None:
        raise ValueError("secret 3.14159")

    monkeypatch.setattr(gp, "maximize", broken)
    with pytest.raises(SurrogateFailed, match="gp: ValueError") as error:
        surrogate("gp").fit(*data(), 0)
    assert "3.14159" not in str(error.value)
