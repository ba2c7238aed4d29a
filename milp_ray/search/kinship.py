"""A user's objectives as seen through the donors': a multi-task Gaussian process, and what speaks for it.

Every donor and the user is a task. Donors share a part ρ of their covariance, the user is tied to that part
with a loading a (the intrinsic model of coregionalisation with one factor, Bonilla et al. 2008): a = 0 is a
user without kin, who is predicted from the own trials alone. The kernel adds a linear part (layers act mostly
on their own) to a squared exponential. Where all are known, values count from a user's no-memory value; level
and scale of the user are drawn towards those of the donors.

ρ, a, the noise and the scale are the most likely of small grids. How much more likely the user's trials are
with donors than without (:attr:`UserModel.evidence`, a log Bayes factor) is what decides whether transfer
goes on. Differences between donors in how near they are to the user are *not* modelled, nor is what to propose
(:mod:`milp_ray.search.advice`). NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import numpy.typing as npt

from milp_ray.memory.space import MemoryConfig, MemorySpace
from milp_ray.search.transfer import Donor

Floats = npt.NDArray[np.float64]

_LINEAR, _SQUARED, _LENGTH = 2.0, 0.5, 0.3  # weights of the kernel's parts; length scale per root dimension
_SHARED = (0.25, 0.5, 0.75, 0.9)  # ρ
_NOISE = (0.03, 0.1, 0.3)  # variance of a standardised value
_LOADINGS = (0.0, 0.4, 0.7, 0.85, 0.97)  # a
_EXPECTED = 3  # index of the a that is assumed before the first trial
_SCALES = (0.5, 0.7, 1.0, 1.4, 2.0)  # of the user, relative to the donors'
_SCALE_PRIOR = 0.5  # standard deviation of its logarithm


@dataclass(frozen=True)
class _Fit:
    """Donors of one objective: Cholesky factor of their covariance, weights, ρ, noise, scale and level."""

    root: Floats
    weights: Floats
    shared: float
    noise: float
    scale: float
    level: float
    spread: float  # of the level, between users


class DonorModel:
    """What donors say of the measured objectives; independent of the user, so fitted once.

    Args:
        space: of all configurations.
        measured: positions of the measured objectives among a trial's values.
        donors: at least one with a trial; others are left out.
    """

    def __init__(self, space: MemorySpace, measured: Sequence[int], donors: Sequence[Donor]) -> None:
        self.space, self.measured = space, tuple(measured)
        used = [donor for donor in donors if donor.told]
        self.inputs = features(space, [config for donor in used for config, _ in donor.told])
        task = np.repeat(np.arange(len(used)), [len(donor.told) for donor in used])
        self._same = task[:, None] == task[None, :]
        tables = [np.array([values for _, values in donor.told], dtype=np.float64) for donor in used]
        origins = np.array([d.no_memory or [np.nan] * t.shape[1] for d, t in zip(used, tables, strict=True)])
        #: Per value whether it is counted from no memory, as can be done where all donors know theirs.
        self.anchored = ~np.isnan(origins).any(axis=0)
        tables = [t - np.where(self.anchored, o, 0.0) for t, o in zip(tables, origins, strict=True)]
        kernel = kernel_of(self.inputs, self.inputs)
        self.fits = tuple(self._fit(kernel, [table[:, index] for table in tables]) for index in self.measured)

    def _fit(self, kernel: Floats, tables: Sequence[Floats]) -> _Fit:
        levels, scales = np.array([t.mean() for t in tables]), np.array([t.std() for t in tables])
        scale = float(scales.mean()) or max(1e-9, 1e-3 * float(np.abs(levels).max()))
        targets = np.concatenate([(t - t.mean()) / (t.std() or 1.0) for t in tables])
        best, fit = -np.inf, None
        for shared, noise in product(_SHARED, _NOISE):
            root = np.linalg.cholesky(kernel * np.where(self._same, 1.0, shared) + noise * np.eye(len(kernel)))
            half = np.linalg.solve(root, targets)
            likelihood = -0.5 * float(half @ half) - float(np.log(np.diag(root)).sum())
            if likelihood > best:
                best, fit = likelihood, (root, half, shared, noise)
        assert fit is not None
        root, half, shared, noise = fit
        spread = float(np.hypot(levels.std(), scale))
        return _Fit(root, np.linalg.solve(root.T, half), shared, noise, scale, float(levels.mean()), spread)


class UserModel:
    """The measured objectives of a user, given donors and the user's own trials.

    Args:
        donors: see :class:`DonorModel`.
        configs: ``n`` that were measured; n = 0 is fine.
        gains: ``n x m``, all objectives, to be maximised; rows with a NaN do not count.
        no_memory: ``m`` values of no memory, NaN where not known.

    Attributes:
        evidence: log Bayes factor of the donors, summed over the objectives; 0 for n = 0.
    """

    def __init__(
        self,
        donors: DonorModel,
        configs: Sequence[MemoryConfig],
        gains: Sequence[Sequence[float]],
        no_memory: Sequence[float],
    ) -> None:
        self._donors = donors
        values = np.asarray(gains, dtype=np.float64).reshape(len(configs), len(no_memory))
        valid = ~np.isnan(values).any(axis=1)
        self._inputs = features(donors.space, [c for c, keep in zip(configs, valid, strict=True) if keep])
        self._across = kernel_of(donors.inputs, self._inputs)
        self._within = kernel_of(self._inputs, self._inputs)
        self.evidence = 0.0
        self._tied: list[_Tied] = []
        for fit, index in zip(donors.fits, donors.measured, strict=True):
            origin = no_memory[index] if donors.anchored[index] else 0.0
            # Without an own no-memory value the level is anybody's guess.
            known = not np.isnan(origin)
            own = values[valid, index] if values.size else np.zeros(0)
            start = fit.level + (origin if known else (own.mean() - fit.level if len(own) else 0.0))
            tied, evidence = _tie(fit, self._across, self._within, own, start)
            self._tied.append(tied)
            self.evidence += evidence

    def moments(self, configs: Sequence[MemoryConfig]) -> list[tuple[Floats, Floats]]:
        """Per measured objective the mean (``c``) and covariance (``c x c``) of the noise-free values."""
        inputs = features(self._donors.space, configs)
        donors, within = kernel_of(self._donors.inputs, inputs), kernel_of(inputs, inputs)
        own = kernel_of(self._inputs, inputs)
        result = []
        for fit, tied in zip(self._donors.fits, self._tied, strict=True):
            half = np.linalg.solve(fit.root, donors) * tied.loading
            size, level = tied.scale**2, fit.spread**2
            mean = tied.start + tied.scale * tied.loading * (fit.weights @ donors)
            covariance = size * (within - half.T @ half) + level
            if len(self._inputs):
                cross = np.linalg.solve(tied.root, size * (own - tied.half.T @ half) + level)
                mean = mean + cross.T @ tied.left
                covariance = covariance - cross.T @ cross
            result.append((mean, covariance))
        return result


@dataclass(frozen=True)
class _Tied:
    """A user's tie to the donors in one objective, at the most likely loading and scale."""

    loading: float
    scale: float
    start: float
    half: Floats  # solved covariance of donors' and own rows, times the loading
    root: Floats  # Cholesky factor of the own rows' covariance, given the donors
    left: Floats  # solved residuals


def _tie(fit: _Fit, across: Floats, within: Floats, own: Floats, start: float) -> tuple[_Tied, float]:
    n = len(own)
    solved, expected = np.linalg.solve(fit.root, across), fit.weights @ across
    scores = np.full((len(_LOADINGS), len(_SCALES)), -np.inf)
    best: tuple[float, _Tied] | None = None
    for (i, share), (j, relative) in product(enumerate(_LOADINGS), enumerate(_SCALES)):
        if n == 0 and (i != _EXPECTED or relative != 1.0):
            continue
        loading, scale = share * float(np.sqrt(fit.shared)), fit.scale * relative
        half = loading * solved
        covariance = scale**2 * (within - half.T @ half + fit.noise * np.eye(n)) + fit.spread**2
        root = np.linalg.cholesky(covariance)
        left = np.linalg.solve(root, own - start - scale * loading * expected)
        scores[i, j] = -0.5 * float(left @ left) - float(np.log(np.diag(root)).sum())
        scores[i, j] -= 0.5 * (np.log(relative) / _SCALE_PRIOR) ** 2
        if best is None or scores[i, j] > best[0]:
            best = scores[i, j], _Tied(loading, scale, start, half, root, left)
    assert best is not None
    if n == 0:
        return best[1], 0.0
    with_donors = np.logaddexp.reduce(scores[1:], axis=None) - np.log(len(_LOADINGS) - 1)
    return best[1], float(with_donors - np.logaddexp.reduce(scores[0]))


@lru_cache(maxsize=16)
def donor_model(space: MemorySpace, measured: tuple[int, ...], donors: tuple[Donor, ...]) -> DonorModel:
    """The same for the same arguments, fitted once per process."""
    return DonorModel(space, measured, donors)


def features(space: MemorySpace, configs: Sequence[MemoryConfig]) -> Floats:
    """``c x (2 L + 1)``: the space's features, then whether each layer has a LoRA at all."""
    rows = [space.features(space.placement(config)) for config in configs]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), space.num_features)
    return np.hstack([table, table[:, :-1] > 0])


def kernel_of(one: Floats, other: Floats) -> Floats:
    """The covariance of one task, ``a x b``, of rows of :func:`features`."""
    layers = (one.shape[1] - 1) // 2
    a, b = one[:, : layers + 1], other[:, : layers + 1]
    apart = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
    near = np.exp(-np.maximum(apart, 0.0) / (2 * _LENGTH**2 * (layers + 1)))
    return np.asarray(_LINEAR * (one @ other.T) / layers + _SQUARED * near, dtype=np.float64)
