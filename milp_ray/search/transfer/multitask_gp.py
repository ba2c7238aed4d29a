"""A user's objectives as seen through the donors': a multi-task Gaussian process, and what speaks for it.

Every donor and the user is a task. Donors share a part ρ of their covariance, the user is tied to
that part with a loading a (the intrinsic model of coregionalisation with one factor;
docs/references.md: Bonilla 2007): a = 0 is a user without kin, who is predicted from the own trials
alone. The kernel adds a sum over layers (which act mostly on their own) to a joint squared
exponential. Where all are known, values count from a user's no-memory value; level and scale of the
user are drawn towards those of the donors.

ρ, a, the noise and the scale are the most likely of small grids. How much more likely the user's trials are
with donors than without (:attr:`UserModel.evidence`, a log Bayes factor) is what decides whether transfer
goes on. Differences between donors in how near they are to the user are *not* modelled, nor is what to
propose (:mod:`milp_ray.search.transfer.warm_start`). NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import numpy.typing as npt

from milp_ray.memory.space import MemoryConfig, MemorySpace
from milp_ray.search.core.transfer_data import Donor

Floats = npt.NDArray[np.float64]

_ADDED, _ADDED_LENGTH = 3.0, 0.4  # variance and length scale of the kernel's part that adds up over layers
_JOINT, _JOINT_LENGTH = 0.5, 0.35  # of the part in which they interact; length per root dimension
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

    Attributes:
        anchored: per value, whether it counts from no memory, as where all donors know theirs.
        origins: the mean of these no-memory values; 0 where they do not count.
    """

    def __init__(self, space: MemorySpace, measured: Sequence[int], donors: Sequence[Donor]) -> None:
        self.space, self.measured = space, tuple(measured)
        used = [donor for donor in donors if donor.told]
        self.inputs = features(space, [config for donor in used for config, _ in donor.told])
        task = np.repeat(np.arange(len(used)), [len(donor.told) for donor in used])
        self._same = task[:, None] == task[None, :]
        tables = [np.array([values for _, values in donor.told], dtype=np.float64) for donor in used]
        origins = np.array([d.no_memory or [np.nan] * t.shape[1] for d, t in zip(used, tables, strict=True)])
        self.anchored = ~np.isnan(origins).any(axis=0)
        self.origins = np.where(self.anchored, origins.mean(axis=0), 0.0)
        tables = [t - np.where(self.anchored, o, 0.0) for t, o in zip(tables, origins, strict=True)]
        kernel = kernel_of(self.inputs, self.inputs)
        self.fits = tuple(self._fit(kernel, [table[:, index] for table in tables]) for index in self.measured)

    def _fit(self, kernel: Floats, tables: Sequence[Floats]) -> _Fit:
        levels, scales = np.array([t.mean() for t in tables]), np.array([t.std() for t in tables])
        scale = max(float(scales.mean()), 1e-9 * (1.0 + float(np.abs(levels).max())))
        targets = np.concatenate([(t - t.mean()) / _size(t) for t in tables])
        best, fit = -np.inf, None
        for shared, noise in product(_SHARED, _NOISE):
            covariance = kernel * np.where(self._same, 1.0, shared) + noise * np.eye(len(kernel))
            root = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
            half = np.linalg.solve(root, targets)
            likelihood = -0.5 * float(half @ half) - float(np.log(np.diag(root)).sum())
            if likelihood > best:
                best, fit = likelihood, (root, half, shared, noise)
        assert fit is not None
        root, half, shared, noise = fit
        spread = float(np.hypot(levels.std(), scale))
        weights = np.asarray(np.linalg.solve(root.T, half), dtype=np.float64)
        return _Fit(root, weights, shared, noise, scale, float(levels.mean()), spread)


def _size(values: Floats) -> float:
    """The standard deviation; 1 for values that do not differ beyond rounding."""
    size = float(values.std())
    return size if size > 1e-9 * (1.0 + abs(float(values.mean()))) else 1.0


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
        valid: npt.NDArray[np.bool_] = np.logical_not(np.isnan(values).any(axis=1))
        self._inputs = features(donors.space, [c for c, keep in zip(configs, valid, strict=True) if keep])
        self._across = kernel_of(donors.inputs, self._inputs)
        self._within = kernel_of(self._inputs, self._inputs)
        self.evidence = 0.0
        self._tied: list[_Tied] = []
        for fit, index in zip(donors.fits, donors.measured, strict=True):
            origin = no_memory[index] if donors.anchored[index] else 0.0
            own = values[valid, index]
            if np.isnan(
                origin
            ):  # where the user's own is not known, the trials' mean or the donors' takes it
                origin = float(own.mean()) - fit.level if len(own) else float(donors.origins[index])
            start = fit.level + origin
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
        half = np.asarray(loading * solved, dtype=np.float64)
        covariance = scale**2 * (within - half.T @ half + fit.noise * np.eye(n)) + fit.spread**2
        covariance += 1e-8 * fit.spread**2 * np.eye(n)  # the scale may be nothing beside the level
        root = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
        left = np.asarray(np.linalg.solve(root, own - start - scale * loading * expected), dtype=np.float64)
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
    """``c x d``: the space's features of each configuration's placement."""
    rows = [space.features(space.placement(config)) for config in configs]
    return np.array(rows, dtype=np.float64).reshape(len(rows), space.num_features)


def kernel_of(one: Floats, other: Floats) -> Floats:
    """The covariance of one task, ``a x b``, of rows of :func:`features`."""
    d = one.shape[1]
    apart = np.zeros((len(one), len(other)))
    added = np.zeros_like(apart)
    for column in range(d):
        square = (one[:, column][:, None] - other[:, column][None, :]) ** 2
        apart += square
        added += np.exp(-square / (2 * _ADDED_LENGTH**2))
    joint = np.exp(-apart / (2 * _JOINT_LENGTH**2 * d))
    return np.asarray(_ADDED * added / d + _JOINT * joint, dtype=np.float64)
