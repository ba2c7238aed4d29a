"""A multi-task Gaussian process over users: what source tasks say of one user's objectives.

Every source and the user is a task. Tasks t, t' at inputs x, x' have the covariance B[t, t'] k(x,
x') (the intrinsic model of coregionalisation with one factor; docs/references.md: Bonilla 2007):

- B = 1 within a task, ρ between two sources, a·√ρ between the user and a source. The loading a is
  how much the user is like the sources; a = 0 is a user without kin, whom only the own trials
  predict.
- k adds a sum over layers, which act mostly on their own, to a joint squared exponential.
- Where all are known, values count from a user's no-memory value. Level and scale of the user are
  drawn towards those of the sources.

ρ, a, the noise and the scale are the most likely of small grids. How much more likely the user's
trials are with sources than without (:attr:`UserModel.evidence`, a log Bayes factor) decides
whether transfer goes on. Differences between sources in how near they are to the user are *not*
modelled, nor is what to propose (:mod:`milp_ray.search.transfer.warm_start`). NumPy only; why the
project has this kernel beside others: docs/search.md.

Sizes in comments: N trials of all sources together, n own trials, c configurations to predict, d
features, m objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import numpy.typing as npt

from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.space import MemorySpace
from milp_ray.search.core.transfer_data import SourceTask

Floats = npt.NDArray[np.float64]

_ADDED, _ADDED_LENGTH = 3.0, 0.4  # variance and length scale of the kernel's part that adds up over layers
_JOINT, _JOINT_LENGTH = 0.5, 0.35  # of the part in which they interact; length per root dimension
_SHARED = (0.25, 0.5, 0.75, 0.9)  # ρ
_NOISE = (0.03, 0.1, 0.3)  # variance of a standardised value
_LOADINGS = (0.0, 0.4, 0.7, 0.85, 0.97)  # a
_EXPECTED = 3  # index of the a that is assumed before the first trial
_SCALES = (0.5, 0.7, 1.0, 1.4, 2.0)  # of the user, relative to the sources'
_SCALE_PRIOR = 0.5  # standard deviation of its logarithm


@dataclass(frozen=True)
class _Fit:
    """The sources' model of one objective."""

    root: Floats  # N x N, Cholesky factor of their covariance
    weights: Floats  # N, the inverse of the covariance times their standardised values
    shared: float  # ρ
    noise: float
    scale: float
    level: float
    spread: float  # of the level, between users


class SourceModel:
    """What sources say of the measured objectives; independent of the user, so fitted once.

    Args:
        space: of all configurations.
        measured: positions of the measured objectives among a trial's values.
        sources: at least one with a trial; others are left out.

    Attributes:
        anchored: per value, whether it counts from no memory, as where all sources know theirs.
        origins: the mean of these no-memory values; 0 where they do not count.
    """

    def __init__(self, space: MemorySpace, measured: Sequence[int], sources: Sequence[SourceTask]) -> None:
        self.space, self.measured = space, tuple(measured)
        # 1) all sources' trials in one table of inputs, with the task that each is of
        used = [source for source in sources if source.observations]
        self.inputs = features(
            space, [config for source in used for config, _ in source.observations]
        )  # N x d
        task = np.repeat(np.arange(len(used)), [len(source.observations) for source in used])  # N
        self._same_task = task[:, None] == task[None, :]  # N x N
        # 2) values count from no memory, where every source knows what that is worth
        tables = [
            np.array([values for _, values in source.observations], dtype=np.float64) for source in used
        ]  # n_t x m
        origins = np.array([s.no_memory or [np.nan] * t.shape[1] for s, t in zip(used, tables, strict=True)])
        self.anchored = ~np.isnan(origins).any(axis=0)  # sources x m -> m
        self.origins = np.where(self.anchored, origins.mean(axis=0), 0.0)  # m
        tables = [t - np.where(self.anchored, o, 0.0) for t, o in zip(tables, origins, strict=True)]
        # 3) one fit an objective, all on the same kernel
        kernel = kernel_of(self.inputs, self.inputs)  # N x N
        self.fits = tuple(self._fit(kernel, [table[:, index] for table in tables]) for index in self.measured)

    def _fit(self, kernel: Floats, tables: Sequence[Floats]) -> _Fit:
        """The most likely ρ and noise of one objective; ``kernel``: N x N, ``tables``: n_t each."""
        # 1) each source standardised by itself: sources share where they are good, not how good
        levels, scales = np.array([t.mean() for t in tables]), np.array([t.std() for t in tables])
        scale = max(float(scales.mean()), 1e-9 * (1.0 + float(np.abs(levels).max())))
        targets = np.concatenate([(t - t.mean()) / _size(t) for t in tables])  # N
        # 2) the grid's largest log marginal likelihood, -½ |L⁻¹y|² - log |L| (constants dropped)
        best, fit = -np.inf, None
        for shared, noise in product(_SHARED, _NOISE):
            task_covariance = np.where(self._same_task, 1.0, shared)  # N x N
            covariance = kernel * task_covariance + noise * np.eye(len(kernel))  # N x N
            root = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)  # N x N
            white = np.linalg.solve(root, targets)  # N
            likelihood = -0.5 * float(white @ white) - float(np.log(np.diag(root)).sum())
            if likelihood > best:
                best, fit = likelihood, (root, white, shared, noise)
        assert fit is not None
        root, white, shared, noise = fit
        # 3) another user's level may be off as far as sources' are apart, and their scale more
        spread = float(np.hypot(levels.std(), scale))
        weights = np.asarray(np.linalg.solve(root.T, white), dtype=np.float64)  # N
        return _Fit(root, weights, shared, noise, scale, float(levels.mean()), spread)


def _size(values: Floats) -> float:
    """The standard deviation; 1 for values that do not differ beyond rounding."""
    size = float(values.std())
    return size if size > 1e-9 * (1.0 + abs(float(values.mean()))) else 1.0


class UserModel:
    """The measured objectives of a user, given sources and the user's own trials.

    Args:
        sources: see :class:`SourceModel`.
        configs: ``n`` that were measured; n = 0 is fine.
        maximized: ``n x m``, all objectives, to be maximised; rows with a NaN do not count.
        no_memory: ``m`` values of no memory, NaN where not known.

    Attributes:
        evidence: log Bayes factor of the sources, summed over the objectives; 0 for n = 0.
    """

    def __init__(
        self,
        sources: SourceModel,
        configs: Sequence[MemoryConfig],
        maximized: Sequence[Sequence[float]],
        no_memory: Sequence[float],
    ) -> None:
        self._sources = sources
        # 1) the own trials that count; from here on n is their number
        values = np.asarray(maximized, dtype=np.float64).reshape(len(configs), len(no_memory))  # n x m
        valid: npt.NDArray[np.bool_] = np.logical_not(np.isnan(values).any(axis=1))
        self._inputs = features(sources.space, [c for c, keep in zip(configs, valid, strict=True) if keep])
        # 2) the kernel between sources' and own trials, and among these
        self._across = kernel_of(sources.inputs, self._inputs)  # N x n
        self._within = kernel_of(self._inputs, self._inputs)  # n x n
        # 3) per objective the tie to the sources that is most likely
        self.evidence = 0.0
        self._tied: list[_Tied] = []
        for fit, index in zip(sources.fits, sources.measured, strict=True):
            origin = no_memory[index] if sources.anchored[index] else 0.0
            own = values[valid, index]  # n
            # Where the user's own is not known, the mean of trials takes its place, or of sources.
            if np.isnan(origin):
                origin = float(own.mean()) - fit.level if len(own) else float(sources.origins[index])
            prior_mean = fit.level + origin
            tied, evidence = _tie(fit, self._across, self._within, own, prior_mean)
            self._tied.append(tied)
            self.evidence += evidence

    def moments(self, configs: Sequence[MemoryConfig]) -> list[tuple[Floats, Floats]]:
        """Per measured objective the mean (``c``) and covariance (``c x c``) without noise."""
        # 1) the kernel of what is asked about with sources' trials, itself, and own trials
        inputs = features(self._sources.space, configs)  # c x d
        sources, within = kernel_of(self._sources.inputs, inputs), kernel_of(inputs, inputs)  # N x c, c x c
        own = kernel_of(self._inputs, inputs)  # n x c
        result = []
        for fit, tied in zip(self._sources.fits, self._tied, strict=True):
            # 2) mean and covariance given the sources; the level, unknown, adds to all alike
            white = np.linalg.solve(fit.root, sources) * tied.loading  # N x c
            size, level = tied.scale**2, fit.spread**2
            mean = tied.prior_mean + tied.scale * tied.loading * (fit.weights @ sources)  # c
            covariance = size * (within - white.T @ white) + level  # c x c
            # 3) and given the own trials as well
            if len(self._inputs):
                cross = np.linalg.solve(tied.root, size * (own - tied.white.T @ white) + level)  # n x c
                mean = mean + cross.T @ tied.residual
                covariance = covariance - cross.T @ cross
            result.append((mean, covariance))
        return result


@dataclass(frozen=True)
class _Tied:
    """A user's tie to the sources in one objective, at the most likely loading and scale."""

    loading: float  # a·√ρ
    scale: float
    prior_mean: float
    white: Floats  # N x n, whitened covariance of sources' and own trials
    root: Floats  # n x n, Cholesky factor of the own trials' covariance, given the sources
    residual: Floats  # n, whitened: what the sources do not explain


def _tie(fit: _Fit, across: Floats, within: Floats, own: Floats, prior_mean: float) -> tuple[_Tied, float]:
    """The most likely tie, and how much more likely the own trials are with sources than without.

    Args:
        fit: of the sources.
        across: ``N x n`` kernel between sources' and own trials.
        within: ``n x n`` kernel of the own trials.
        own: ``n`` values.
        prior_mean: of the user's level.
    """
    n = len(own)
    # 1) what does not depend on the grid: whitened kernel, and what sources predict
    white_across, expected = np.linalg.solve(fit.root, across), fit.weights @ across  # N x n, n
    scores = np.full((len(_LOADINGS), len(_SCALES)), -np.inf)
    best: tuple[float, _Tied] | None = None
    for (i, share), (j, relative) in product(enumerate(_LOADINGS), enumerate(_SCALES)):
        # Without a trial nothing is more likely than anything else: what is assumed holds.
        if n == 0 and (i != _EXPECTED or relative != 1.0):
            continue
        # 2) covariance of the own trials, given the sources: what these explain is taken off
        loading, scale = share * float(np.sqrt(fit.shared)), fit.scale * relative
        white = np.asarray(loading * white_across, dtype=np.float64)  # N x n
        covariance = scale**2 * (within - white.T @ white + fit.noise * np.eye(n)) + fit.spread**2  # n x n
        covariance += 1e-8 * fit.spread**2 * np.eye(n)  # the scale may be nothing beside the level
        root = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)  # n x n
        # 3) log density of the own values, and of the scale's log-normal prior
        away = own - prior_mean - scale * loading * expected  # n
        residual = np.asarray(np.linalg.solve(root, away), dtype=np.float64)  # n
        scores[i, j] = -0.5 * float(residual @ residual) - float(np.log(np.diag(root)).sum())
        scores[i, j] -= 0.5 * (np.log(relative) / _SCALE_PRIOR) ** 2
        if best is None or scores[i, j] > best[0]:
            best = scores[i, j], _Tied(loading, scale, prior_mean, white, root, residual)
    assert best is not None
    if n == 0:
        return best[1], 0.0
    # 4) log Bayes factor: mean density over all a > 0 against that of a = 0, summed over scales
    with_sources = np.logaddexp.reduce(scores[1:], axis=None) - np.log(len(_LOADINGS) - 1)
    return best[1], float(with_sources - np.logaddexp.reduce(scores[0]))


@lru_cache(maxsize=16)
def source_model(
    space: MemorySpace, measured: tuple[int, ...], sources: tuple[SourceTask, ...]
) -> SourceModel:
    """The same for the same arguments, fitted once per process."""
    return SourceModel(space, measured, sources)


def features(space: MemorySpace, configs: Sequence[MemoryConfig]) -> Floats:
    """``c x d``: the space's features of each configuration's placement."""
    rows = [space.features(space.placement(config)) for config in configs]
    return np.array(rows, dtype=np.float64).reshape(len(rows), space.num_features)


def kernel_of(one: Floats, other: Floats) -> Floats:
    """The covariance of one task, ``a x b``, of features ``a x d`` and ``b x d``."""
    d = one.shape[1]
    # 1) column by column, so that no a x b x d array is made
    distance2 = np.zeros((len(one), len(other)))  # a x b
    additive = np.zeros_like(distance2)
    for column in range(d):
        square = (one[:, column][:, None] - other[:, column][None, :]) ** 2  # a x b
        distance2 += square
        additive += np.exp(-square / (2 * _ADDED_LENGTH**2))
    # 2) the mean over features of a kernel of each alone, and a joint one that knows interactions
    joint = np.exp(-distance2 / (2 * _JOINT_LENGTH**2 * d))
    return np.asarray(_ADDED * additive / d + _JOINT * joint, dtype=np.float64)
