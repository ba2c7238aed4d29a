"""The no-U-turn sampler for the SAAS Gaussian process, compiled once per bucket of n and shared by all users.

The model is BoTorch's ``SaasPyroModel`` (SAASBO, Eriksson and Jankowiak 2021, section 4; the same priors):
mean ~ N(0, 1), output scale ~ Gamma(2, 0.15), noise ~ 1e-4 + Gamma(0.9, 10), τ ~ HalfCauchy(0.1),
ρ_i ~ HalfCauchy(1), 1 / lengthscale_i² = τ·ρ_i, Matérn 5/2. What differs is how it is computed: data are
padded to a multiple of 32 rows with a mask, so that one compiled program serves a whole bucket; distances in
Gram form take O(n²) memory instead of O(n²·d); and the program is a pure function of (seed, data), safe in
any thread.

Loading draws into a BoTorch model is *not* covered here: see :mod:`milp_ray.search.surrogates.saas`.
Importing this module imports JAX.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# One core per chain: XLA would otherwise spin up a thread per core, beside trials that own those cores, for
# matrices that are too small to gain from it. Read by JAX when its backend starts, so it stands before the
# import.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from numpyro.infer.hmc import hmc

Array = npt.NDArray[np.float64]

BUCKET = 32
MIN_NOISE = 1e-4  # BoTorch's MIN_INFERRED_NOISE_LEVEL
_MAX_TREE_DEPTH = 6  # as fit_fully_bayesian_model_nuts
_JITTER = 1e-6


def bucket_of(n: int) -> int:
    """The number of rows, padding included, that ``n`` observations are computed with."""
    return max(1, math.ceil(n / BUCKET)) * BUCKET


def sample_saas(
    X: Array, Y: Array, *, seed: int, warmup: int, samples: int, double: bool = True
) -> dict[str, Array]:
    """Draws from the posterior of one output.

    Args:
        X: ``n x d``, in the unit cube, n ≥ 1.
        Y: ``n``, standardized.
        seed: of the chain; the same seed and data give the same draws.
        warmup: steps that adapt step size and (dense) mass matrix, and are thrown away.
        samples: draws S.
        double: float64. In float32 the Cholesky factor of nearly equal placements breaks down at small noise,
            which stops the chain where it stands; float64 costs up to twice the time from n = 60 on.

    Returns:
        ``mean``, ``outputscale``, ``noise``: S; ``lengthscale``: S x d. May hold NaN where the chain broke
        down.
    """
    n, d = X.shape
    rows = bucket_of(n)
    padded_X, padded_Y, mask = np.zeros((rows, d)), np.zeros(rows), np.zeros(rows)
    padded_X[:n], padded_Y[:n], mask[:n] = X, Y, 1.0
    with jax.enable_x64(double):
        kind = jnp.float64 if double else jnp.float32
        data = [jnp.asarray(values, dtype=kind) for values in (padded_X, padded_Y, mask)]
        drawn = _program(rows, d, warmup, samples, double)(jax.random.PRNGKey(seed % 2**32), *data)
        z = np.asarray(drawn, dtype=np.float64)
    return _constrained(z)


def keep_compiled(folder: Path) -> None:
    """Keep compiled programs in ``folder`` for later processes, unless JAX was told of another one."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def compile_for(rows: int, d: int, *, warmup: int, samples: int, double: bool = True) -> None:
    """Compile the program that serves ``n`` ≤ ``rows`` observations of ``d`` features, without running it:
    how long a chain takes depends on the data, and made-up data can take it minutes."""
    with jax.enable_x64(double):
        _program(bucket_of(rows), d, warmup, samples, double)


def _constrained(z: Array) -> dict[str, Array]:
    """Unconstrained draws, ``S x (4 + d)``, as the parameters a BoTorch model takes."""
    with np.errstate(over="ignore", divide="ignore"):
        return {
            "mean": z[:, 0],
            "outputscale": np.exp(z[:, 1]),
            "noise": MIN_NOISE + np.exp(z[:, 2]),
            "lengthscale": np.exp(-0.5 * (z[:, 3:4] + z[:, 4:])),
        }


def _potential(z: jax.Array, X: jax.Array, Y: jax.Array, mask: jax.Array) -> jax.Array:
    """Negative log joint density of the unconstrained parameters (Jacobians included, constants dropped).

    ``z`` is mean, log output scale, log (noise - 1e-4), log τ, log ρ_1 … log ρ_d. A padded row has an
    identity row in the covariance and a zero residual, so it changes neither the determinant nor the
    quadratic form.
    """
    mean, log_scale, log_noise, log_tau, log_rho = z[0], z[1], z[2], z[3], z[4:]
    prior = -0.5 * mean**2
    prior += 2.0 * log_scale - 0.15 * jnp.exp(log_scale)
    prior += 0.9 * log_noise - 10.0 * jnp.exp(log_noise)
    prior += log_tau - jnp.logaddexp(0.0, 2.0 * (log_tau - math.log(0.1)))
    prior += jnp.sum(log_rho - jnp.logaddexp(0.0, 2.0 * log_rho))
    S = X * jnp.exp(0.5 * (log_tau + log_rho))
    squares = jnp.sum(S * S, axis=1)
    distance2 = squares[:, None] + squares[None, :] - 2.0 * S @ S.T
    r = jnp.sqrt(5.0 * jnp.maximum(distance2, 1e-12))
    K = jnp.exp(log_scale) * (1.0 + r + r * r / 3.0) * jnp.exp(-r) * mask[:, None] * mask[None, :]
    K += jnp.diag(jnp.where(mask > 0, MIN_NOISE + jnp.exp(log_noise) + _JITTER, 1.0))
    L = jnp.linalg.cholesky(K)
    residual = solve_triangular(L, Y - mean * mask, lower=True)
    fit = -0.5 * jnp.sum(residual**2) - jnp.sum(jnp.log(jnp.diagonal(L)))
    return -(prior + fit)


@lru_cache(maxsize=64)
def _program(rows: int, d: int, warmup: int, samples: int, double: bool) -> Callable[..., jax.Array]:
    """The compiled chain for data of ``rows x d``: (key, X, Y, mask) -> ``samples x (4 + d)``."""

    def chain(key: jax.Array, X: jax.Array, Y: jax.Array, mask: jax.Array) -> jax.Array:
        key_start, key_chain = jax.random.split(key)
        begin, step = hmc(potential_fn_gen=lambda: lambda z: _potential(z, X, Y, mask), algo="NUTS")
        state = begin(
            # numpyro's own default start, init_to_uniform
            jax.random.uniform(key_start, (4 + d,), X.dtype, -2.0, 2.0),
            num_warmup=warmup,
            trajectory_length=None,
            max_tree_depth=_MAX_TREE_DEPTH,
            dense_mass=True,
            rng_key=key_chain,
        )

        def draw(state: Any, _: None) -> tuple[Any, jax.Array]:
            state = step(state, (), {})
            return state, state.z

        # One loop for warm-up and draws: two would compile the same tree-building code twice.
        return jax.lax.scan(draw, state, None, length=warmup + samples)[1][warmup:]

    kind = jnp.float64 if double else jnp.float32
    shapes = [jax.ShapeDtypeStruct(shape, kind) for shape in ((rows, d), (rows,), (rows,))]
    compiled: Callable[..., jax.Array] = jax.jit(chain).lower(jax.random.PRNGKey(0), *shapes).compile()
    return compiled
