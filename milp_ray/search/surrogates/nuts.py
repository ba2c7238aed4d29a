"""The no-U-turn sampler for the SAAS Gaussian process, compiled once per bucket of n.

The sampler is NumPyro's (docs/references.md: Hoffman 2014). The model is BoTorch's
``SaasPyroModel`` (SAASBO, Eriksson 2021, section 4; the same priors):
mean ~ N(0, 1), output scale ~ Gamma(2, 0.15), noise ~ 1e-4 + Gamma(0.9, 10), τ ~ HalfCauchy(0.1),
ρ_i ~ HalfCauchy(1), 1 / lengthscale_i² = τ·ρ_i, Matérn 5/2. What differs is how it is computed:

- Data are padded to a multiple of 32 rows with a mask, so that one compiled program serves a whole
  bucket.
- Distances in Gram form take O(n²) memory instead of O(n²·d).
- The gradient of the likelihood is written out (one inverse of the Cholesky factor) instead of
  being derived through the factorisation: a third of the time.
- Parameters have coordinates in which the prior is standard normal (half-Cauchy) or nearly so (the
  others). Inputs that do not matter then need no adaptation, where log coordinates with their heavy
  tails do.
- The chain runs in these, whitened by the curvature at the posterior's mode (:func:`_laplace`): a
  constant linear map, so what is sampled stays the same, and all directions are about as long. A
  chain then takes 10 to 15 leapfrog steps a draw where it took 30 to 40, has nothing to adapt but
  its step size, and so needs a short warm-up only.
- All is a pure function of (seed, data), safe in any thread.

Three sets of coordinates follow from each other: z, in which the chain runs; u = mode + white·z,
whose prior is standard normal or nearly so; θ, the model's parameters.

Loading draws into a BoTorch model is *not* covered here: see
:mod:`milp_ray.search.surrogates.saas`. Importing this module imports JAX. Why the project has this
kernel beside others: docs/search.md.

Sizes in comments: n observations padded to N rows, d features, S draws.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# One core per chain: XLA would otherwise spin up a thread per core, beside trials that own those
# cores, for matrices that are too small to gain from it. Read by JAX when its backend starts, so it
# stands before the import. And on the CPU, wherever JAX finds a GPU: it would take three quarters
# of it from the trials.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import ndtr
from numpyro.infer.hmc import hmc
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import ndtr as ndtr_array  # type: ignore[import-untyped]

Array = npt.NDArray[np.float64]

BUCKET = 32
MIN_NOISE = 1e-4  # BoTorch's MIN_INFERRED_NOISE_LEVEL
_MAX_TREE_DEPTH = 6  # as fit_fully_bayesian_model_nuts
_JITTER = 1e-6
_NEAR = 0.3  # spread of the starts from which the mode is looked for, in the prior's standard deviations
_MODE_STEPS = 100
_FAR = 1e12  # potential where there is none
# Shift and factor that bring the logarithms of the two Gamma priors near to a standard normal one.
_SCALE_AT, _SCALE_BY = 2.2, 0.85
_NOISE_AT, _NOISE_BY = -3.0, 1.2


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
        warmup: steps that adapt the step size, and are thrown away.
        samples: draws S.
        double: float64. In float32 the Cholesky factor of nearly equal placements breaks down at
            small noise, which stops the chain where it stands; float64 costs up to twice the time
            from n = 60 on.

    Returns:
        ``mean``, ``outputscale``, ``noise``: S; ``lengthscale``: S x d. May hold NaN where the
            chain broke
        down.
    """
    # 1) pad the data, so that one compiled program serves the whole bucket
    n, d = X.shape
    rows = bucket_of(n)  # N
    padded_X, padded_Y, mask = np.zeros((rows, d)), np.zeros(rows), np.zeros(rows)  # N x d, N, N
    padded_X[:n], padded_Y[:n], mask[:n] = X, Y, 1.0
    with jax.enable_x64(double):
        kind = jnp.float64 if double else jnp.float32
        data = [jnp.asarray(values, dtype=kind) for values in (padded_X, padded_Y, mask)]
        # 2) find the mode and the curvature there: 4 + d, (4 + d) x (4 + d)
        mode, white = _laplace(_gradient(rows, d, double), data, seed, kind)
        # 3) run the chain: S x (4 + d)
        drawn = _program(rows, d, warmup, samples, double)(
            jax.random.PRNGKey(seed % 2**32), jnp.asarray(mode, kind), jnp.asarray(white, kind), *data
        )
    # 4) turn its coordinates into the model's parameters
    return _constrained_rows(np.asarray(drawn, dtype=np.float64))


def keep_compiled(folder: Path) -> None:
    """Keep compiled programs in ``folder`` for later processes, unless JAX knows another one."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def compile_for(rows: int, d: int, *, warmup: int, samples: int, double: bool = True) -> None:
    """Compile the program for ``n`` ≤ ``rows`` observations of ``d`` features, without a run.

    How long a chain takes depends on the data, and on made-up data it can take minutes.
    """
    with jax.enable_x64(double):
        _gradient(bucket_of(rows), d, double)
        _program(bucket_of(rows), d, warmup, samples, double)


class _Hyper(NamedTuple):
    """θ, the parameters of the model."""

    mean: jax.Array
    outputscale: jax.Array
    noise: jax.Array
    inverse2: jax.Array  # d: 1 / lengthscale²


def _constrained(u: jax.Array) -> _Hyper:
    """θ at ``4 + d`` coordinates u: mean, output scale, noise, τ, ρ_1 … ρ_d."""
    # 1 / lengthscale_i² = τ·ρ_i with τ ~ HalfCauchy(0.1), in logarithms, as both tails are heavy.
    inverse2 = jnp.exp(math.log(0.1) + _log_half_cauchy(u[3]) + _log_half_cauchy(u[4:]))
    return _Hyper(
        u[0],
        jnp.exp(_SCALE_AT + _SCALE_BY * u[1]),
        MIN_NOISE + jnp.exp(_NOISE_AT + _NOISE_BY * u[2]),
        inverse2,
    )


def _constrained_rows(u: Array) -> dict[str, Array]:
    """:func:`_constrained` of ``S x (4 + d)`` draws, by NumPy: JAX would compile every step."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        half_cauchy = np.tan(0.5 * np.pi * ndtr_array(u[:, 3:]))  # S x (1 + d): τ / 0.1, then ρ
        return {
            "mean": u[:, 0],
            "outputscale": np.exp(_SCALE_AT + _SCALE_BY * u[:, 1]),
            "noise": MIN_NOISE + np.exp(_NOISE_AT + _NOISE_BY * u[:, 2]),
            # S x d
            "lengthscale": 1.0 / np.sqrt(0.1 * half_cauchy[:, :1] * half_cauchy[:, 1:]),
        }


def _log_half_cauchy(u: jax.Array) -> jax.Array:
    """Log half-Cauchy(1) quantile at probability Φ(u): log tan(π/2·Φ(u)), accurate in the tails."""
    return jnp.log(jnp.sin(0.5 * jnp.pi * ndtr(u))) - jnp.log(jnp.sin(0.5 * jnp.pi * ndtr(-u)))


def _potential(u: jax.Array, X: jax.Array, Y: jax.Array, mask: jax.Array) -> jax.Array:
    """Negative log joint density in the coordinates u (Jacobians included, constants dropped).

    A padded row has an identity row in the covariance and a zero residual, so it changes neither
    the determinant nor the quadratic form.

    Args:
        u: ``4 + d`` coordinates.
        X, Y, mask: ``N x d``, ``N`` and ``N``; 1 for an observation, 0 for a padded row.
    """
    theta = _constrained(u)
    log_scale, log_noise = _SCALE_AT + _SCALE_BY * u[1], _NOISE_AT + _NOISE_BY * u[2]
    # 1) the mean, τ and each ρ are standard normal in u by construction
    prior = -0.5 * u[0] ** 2 - 0.5 * jnp.sum(u[3:] ** 2)
    # 2) Gamma(2, 0.15) and Gamma(0.9, 10) of exp(v) have, in v, the log density a·v - b·exp(v)
    prior += 2.0 * log_scale - 0.15 * jnp.exp(log_scale)
    prior += 0.9 * log_noise - 10.0 * jnp.exp(log_noise)
    # 3) the likelihood of the residuals, noise on the diagonal
    scaled = X * jnp.sqrt(theta.inverse2)  # N x d
    diagonal = jnp.where(mask > 0, theta.noise + _JITTER, 1.0)  # N
    return -(prior + _likelihood(scaled, Y - theta.mean * mask, diagonal, theta.outputscale, mask))


@jax.custom_vjp  # type: ignore[untyped-decorator]
def _likelihood(
    S: jax.Array, residual: jax.Array, diagonal: jax.Array, outputscale: jax.Array, mask: jax.Array
) -> jax.Array:
    """Log density of ``N`` residuals under a Matérn 5/2 kernel, constant dropped.

    Args:
        S: ``N x d`` inputs in length scales.
        residual: ``N``. diagonal: ``N``, what is added to the kernel's. mask: ``N``.
        outputscale: of the kernel.
    """
    return _forward(S, residual, diagonal, outputscale, mask)[0]


def _forward(
    S: jax.Array, residual: jax.Array, diagonal: jax.Array, outputscale: jax.Array, mask: jax.Array
) -> Any:
    """The value, and what its gradient needs of the way there."""
    # 1) distances in Gram form; above 0, as the root has no slope there
    squares = jnp.sum(S * S, axis=1)  # N
    distance2 = squares[:, None] + squares[None, :] - 2.0 * S @ S.T  # N x N
    r = jnp.sqrt(5.0 * jnp.maximum(distance2, 1e-12))  # N x N
    # 2) Matérn 5/2; padded rows are uncorrelated with all others
    decay = outputscale * jnp.exp(-r) * mask[:, None] * mask[None, :]  # N x N
    K = decay * (1.0 + r + r * r / 3.0)  # N x N
    # 3) -½ |L⁻¹y|² - log |L|
    L = jnp.linalg.cholesky(K + jnp.diag(diagonal))  # N x N
    white = solve_triangular(L, residual, lower=True)  # N
    value = -0.5 * jnp.sum(white**2) - jnp.sum(jnp.log(jnp.diagonal(L)))
    return value, (S, L, white, K, r, decay, outputscale)


def _backward(kept: Any, g: jax.Array) -> Any:
    """The gradient by (S, residual, diagonal, outputscale); the mask has none."""
    S, L, white, K, r, decay, outputscale = kept
    # 1) docs/references.md: Rasmussen 2006, eq. 5.9: dL/dK = (α αᵀ - K⁻¹) / 2 with α = K⁻¹ y
    alpha = solve_triangular(L, white, lower=True, trans=1)  # N
    inverse = solve_triangular(L, jnp.eye(L.shape[0], dtype=L.dtype), lower=True)  # N x N: L⁻¹
    dK = 0.5 * (jnp.outer(alpha, alpha) - solve_triangular(L, inverse, lower=True, trans=1))
    # 2) dK / d(distance²) = -5/6 (1 + r) e^-r
    D = dK * (-5.0 / 6.0) * (1.0 + r) * decay  # N x N
    # 3) distance² is symmetric in its two points, so each point's slope comes twice
    dS = 4.0 * (jnp.sum(D, axis=1)[:, None] * S - D @ S)  # N x d
    return g * dS, -g * alpha, g * jnp.diagonal(dK), g * jnp.sum(dK * K) / outputscale, None


_likelihood.defvjp(_forward, _backward)


def _laplace(
    gradient: Callable[..., tuple[jax.Array, jax.Array]], data: Sequence[jax.Array], seed: int, kind: Any
) -> tuple[Array, Array]:
    """The higher of two modes found from random starts, and the map that whitens it.

    Returns:
        ``mode``: 4 + d coordinates. ``white``: (4 + d) x (4 + d), ``white @ white.T`` being the
            inverse
        of the negative log density's Hessian, by absolute eigenvalues (the prior's 1 at least, as a
        direction in which the density is flat there is not flat everywhere). Where no mode can be
        found: 0 and the identity.
    """
    size = data[0].shape[1] + 4

    def value(u: Array) -> tuple[float, Array]:
        found, slope = gradient(jnp.asarray(u, kind), *data)
        total, turned = float(found), np.asarray(slope, dtype=np.float64)
        if not (math.isfinite(total) and np.isfinite(turned).all()):  # no Cholesky factor: turn back
            return _FAR, np.zeros(size)
        return total, turned

    # 1) the posterior may have several modes: of two starts the better end counts
    starts = _NEAR * np.random.default_rng(seed % 2**32).standard_normal((2, size))  # 2 x (4 + d)
    options = {"maxiter": _MODE_STEPS}
    ends = [minimize(value, start, jac=True, method="L-BFGS-B", options=options) for start in starts]
    mode = min(ends, key=lambda end: float(end.fun)).x  # 4 + d
    # 2) the Hessian by differences of slopes, so that no second derivative has to be compiled
    level, slope = value(mode)
    step = 1e-4 if kind == jnp.float64 else 1e-2
    hessian = np.stack([value(mode + row)[1] - slope for row in step * np.eye(size)]) / step
    if level >= _FAR or not np.isfinite(hessian).all():
        return np.zeros(size), np.eye(size)
    # 3) its inverse root: steps along an eigenvector are as long as the density is wide there
    values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))  # 4 + d, (4 + d) x (4 + d)
    return mode, vectors / np.sqrt(np.maximum(np.abs(values), 1.0))


@lru_cache(maxsize=64)
def _gradient(rows: int, d: int, double: bool) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The compiled potential with its gradient: (u, X, Y, mask) -> value, ``4 + d`` slopes."""
    kind = jnp.float64 if double else jnp.float32
    shapes = [jax.ShapeDtypeStruct(shape, kind) for shape in ((4 + d,), (rows, d), (rows,), (rows,))]
    compiled: Callable[..., tuple[jax.Array, jax.Array]] = (
        jax.jit(jax.value_and_grad(_potential)).lower(*shapes).compile()
    )
    return compiled


@lru_cache(maxsize=64)
def _program(rows: int, d: int, warmup: int, samples: int, double: bool) -> Callable[..., jax.Array]:
    """The compiled chain for data of ``rows x d``.

    It maps (key, mode, white, X, Y, mask) to coordinates u, ``samples x (4 + d)`` (see
    ``_constrained``).
    """

    def chain(
        key: jax.Array, mode: jax.Array, white: jax.Array, X: jax.Array, Y: jax.Array, mask: jax.Array
    ) -> jax.Array:
        key_start, key_chain = jax.random.split(key)

        # 1) the same density in whitened coordinates, of ``4 + d``
        def potential(z: jax.Array) -> jax.Array:
            return _potential(mode + white @ z, X, Y, mask)

        # 2) NUTS, which adapts its step size alone: the mass matrix is white's business
        begin, step = hmc(potential_fn_gen=lambda: potential, algo="NUTS")
        state = begin(
            jax.random.normal(key_start, (4 + d,), X.dtype),  # as the posterior would be if it were normal
            num_warmup=warmup,
            adapt_mass_matrix=False,
            trajectory_length=None,
            max_tree_depth=_MAX_TREE_DEPTH,
            step_size=0.5,
            rng_key=key_chain,
        )

        def draw(state: Any, _: None) -> tuple[Any, jax.Array]:
            state = step(state, (), {})
            return state, mode + white @ state.z

        # 3) one loop for warm-up and draws: two would compile the same tree-building code twice
        return jax.lax.scan(draw, state, None, length=warmup + samples)[1][warmup:]

    kind = jnp.float64 if double else jnp.float32
    sizes = ((4 + d,), (4 + d, 4 + d), (rows, d), (rows,), (rows,))
    shapes = [jax.ShapeDtypeStruct(size, kind) for size in sizes]
    compiled: Callable[..., jax.Array] = jax.jit(chain).lower(jax.random.PRNGKey(0), *shapes).compile()
    return compiled
