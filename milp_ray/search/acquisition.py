"""Log noisy expected hypervolume improvement of many discrete candidates at once.

The quantity is that of qLogNEHVI with q = 1 (Daulton et al. 2021, eq. 6; logarithm and fat-tailed smoothing
after Ament et al. 2023, section 4.2): how much volume a candidate adds to the front of the observed *and*
pending points, averaged over joint draws of all their values, so that neither noise nor a pending trial is
taken at its word. More proposals come one after the other, each with the earlier ones pending.

BoTorch's own class takes a posterior per candidate and a box decomposition per draw, made for gradients.
Nothing here needs a gradient: one joint posterior per chunk of candidates, and strips instead of boxes for
two objectives, keep it light, and no C++ extension has to be built; tests/search/test_acquisition.py holds
it to BoTorch's values. An exact objective is a deterministic model: a further input column that is handed
through (:func:`with_exact`). With one objective it is log noisy expected improvement.
"""

from __future__ import annotations

import torch
from botorch.models.deterministic import GenericDeterministicModel
from botorch.models.model import Model, ModelList
from botorch.utils.multi_objective.box_decompositions.non_dominated import FastNondominatedPartitioning
from gpytorch.utils.cholesky import psd_safe_cholesky
from torch import Tensor
from torch.quasirandom import SobolEngine

from milp_ray.search.surrogates.base import Fitted

_CHUNK = 256  # candidates per joint posterior
_KEPT = 48  # observed points that can matter for the front, at most
_TAU = 1e-3  # smoothing of "no improvement", in standard deviations of an outcome
_CELLS = 1 << 23  # numbers in the largest intermediate tensor


class Acquisition:
    """The acquisition of one fit, for candidates given as rows of inputs.

    Args:
        models: of all m objectives, each to be maximised, see :func:`with_exact`.
        components: S, Gaussian components of each posterior.
        reference: ``m`` double tensor, to be maximised; not used for m = 1.
        observed: ``n x D`` inputs of the observations, n ≥ 1.
        pending: ``p x D`` inputs of proposals that have not ended.
        seed: of the draws, which stay fixed from call to call.
        draws: M per component; None: enough for the number of objectives (three need a slow decomposition
            each).
    """

    def __init__(
        self,
        models: ModelList,
        components: int,
        reference: Tensor,
        observed: Tensor,
        pending: Tensor,
        *,
        seed: int,
        draws: int | None = None,
    ) -> None:
        self._models = list(models.models)
        self._components = components
        self._reference = reference
        self._seed = seed
        self._draws = draws or (32 if len(self._models) < 3 else 8)
        with torch.no_grad():
            self._observed = self._promising(observed)
            self._pending = pending
            self._condition()

    @torch.no_grad()
    def __call__(self, X: Tensor) -> Tensor:
        """Log of the expected improvement of each candidate alone.

        Args:
            X: ``c x D`` candidates.

        Returns:
            ``c`` finite numbers; more is better.
        """
        return torch.cat([self._chunk(part) for part in torch.split(X, _CHUNK)])

    @torch.no_grad()
    def add_pending(self, X: Tensor) -> None:
        """Take ``k x D`` further inputs as pending."""
        self._pending = torch.cat([self._pending, X])
        self._condition()

    def _promising(self, observed: Tensor) -> Tensor:
        """The observations that are on the front in at least one draw; all others cannot matter."""
        mean, root = self._joint(observed)
        values = mean + torch.einsum("msij,mdj->msdi", root, self._noise(len(observed)))
        rows = values.permute(1, 2, 3, 0).flatten(0, 1)  # (S·M) x n x m
        share = torch.zeros(len(observed), dtype=torch.double)
        for part in torch.split(rows, max(1, _CELLS // max(1, len(observed) ** 2))):
            better = (part.unsqueeze(1) >= part.unsqueeze(2)).all(-1)
            strictly = (part.unsqueeze(1) > part.unsqueeze(2)).any(-1)
            share += (~(better & strictly).any(-1)).sum(0)
        order = share.argsort(descending=True, stable=True)[:_KEPT]
        return observed[order[share[order] > 0].sort().values]

    def _condition(self) -> None:
        """Draw the values of what is known, and lay out the volume that is still to be gained above them."""
        self._known = torch.cat([self._observed, self._pending])
        mean, root = self._joint(self._known)
        noise = self._noise(len(self._known) + 1)
        self._root, self._weights, self._own = root, noise[..., :-1], noise[..., -1]
        values = mean + torch.einsum("msij,mdj->msdi", root, self._weights)
        self._gaps = _Gaps(values.permute(1, 2, 3, 0).flatten(0, 1), self._reference)

    def _chunk(self, X: Tensor) -> Tensor:
        k, c = len(self._known), len(X)
        draws = []
        for index, model in enumerate(self._models):
            mean, covariance = self._moments(model, torch.cat([self._known, X]))
            cross = covariance[:, :k, k:]
            # cov(x, known) = A Lᵀ, so that given draws L·w of the known values x has mean A·w.
            A = torch.linalg.solve_triangular(self._root[index], cross, upper=False)
            left = covariance.diagonal(dim1=-2, dim2=-1)[:, k:] - A.square().sum(-2)
            spread = left.clamp_min(0.0).sqrt()
            centre = mean[:, None, k:] + torch.einsum("skc,dk->sdc", A, self._weights[index])
            draws.append(centre + spread[:, None, :] * self._own[index][None, :, None])
        values = torch.stack(draws, dim=-1).reshape(self._components * self._draws, c, len(self._models))
        return self._gaps.log_gain(values)

    def _joint(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``m x S x 1 x k`` and Cholesky factors ``m x S x k x k`` of the outputs at ``X``."""
        means, roots = [], []
        for model in self._models:
            mean, covariance = self._moments(model, X)
            scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)
            jitter = 1e-6 * scale[:, None, None] * torch.eye(len(X), dtype=torch.double)
            means.append(mean)
            roots.append(psd_safe_cholesky(covariance + jitter))
        return torch.stack(means).unsqueeze(2), torch.stack(roots)

    def _moments(self, model: Model, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``S x k`` and covariance ``S x k x k`` of one output at ``X``."""
        S, k = self._components, len(X)
        if isinstance(model, GenericDeterministicModel):
            return model(X).squeeze(-1).expand(S, k), torch.zeros(S, k, k, dtype=torch.double)
        posterior = model.posterior(X)
        distribution = posterior.distribution
        mean = distribution.mean.reshape(-1, k)
        return mean.expand(S, k), distribution.covariance_matrix.reshape(-1, k, k).expand(S, k, k)

    def _noise(self, count: int) -> Tensor:
        """``m x M x count`` standard normal quasi-random draws, the same for the same count."""
        m = len(self._models)
        engine = SobolEngine(  # type: ignore[no-untyped-call]
            m * count, scramble=True, seed=self._seed % 2**31
        )
        uniform = engine.draw(self._draws, dtype=torch.double).clamp(1e-9, 1 - 1e-9)
        normal: Tensor = torch.special.ndtri(uniform).reshape(self._draws, m, count)
        return normal.transpose(0, 1)


class _Gaps:
    """The space above a front, cut into boxes, for each of R draws; ``front``: ``R x k x m``."""

    def __init__(self, front: Tensor, reference: Tensor) -> None:
        m = front.shape[-1]
        if m == 1:
            lower = front.max(dim=1).values.unsqueeze(1)
            upper = torch.full_like(lower, torch.inf)
        elif m == 2:
            lower, upper = _strips(front, reference)
        else:
            lower, upper = _boxes(front, reference)
        self._lower, self._width = lower, upper - lower

    def log_gain(self, values: Tensor) -> Tensor:
        """Log of the smoothed volume gained, averaged over draws; ``values``: ``R x c x m``, result ``c``."""
        R, _, m = values.shape
        boxes = self._lower.shape[1]
        gained = []
        for part in torch.split(values, max(1, _CELLS // (R * boxes * m)), dim=1):
            area = torch.ones(R, part.shape[1], boxes, dtype=torch.double)
            for index in range(m):
                over = _soft(part[:, :, None, index] - self._lower[:, None, :, index])
                area *= torch.minimum(over, self._width[:, None, :, index])
            gained.append(area.sum(-1).mean(0))
        return torch.cat(gained).clamp_min(1e-300).log()


def with_exact(fitted: Fitted, exact: list[int], m: int, d: int) -> ModelList:
    """All m objectives as one model over ``d + len(exact)`` input columns.

    Args:
        fitted: models of the measured objectives, in order; they read the first d columns.
        exact: positions of the exact objectives among all m; the j-th is handed through from column d + j.
        m: number of objectives.
        d: number of features.
    """
    measured = iter(fitted.model.models)
    models: list[Model] = []
    for index in range(m):
        if index in exact:
            column = d + exact.index(index)
            models.append(GenericDeterministicModel(_Column(column)))
        else:
            models.append(_OnFeatures(next(measured), d))
    return ModelList(*models)


class _Column:
    """Hands an input column through as an output."""

    def __init__(self, column: int) -> None:
        self._column = column

    def __call__(self, X: Tensor) -> Tensor:
        return X[..., self._column : self._column + 1]


class _OnFeatures(Model):  # type: ignore[misc]
    """A model that reads the first d input columns only."""

    def __init__(self, model: Model, d: int) -> None:
        super().__init__()
        self._model, self._d = model, d

    @property
    def num_outputs(self) -> int:
        return int(self._model.num_outputs)

    @property
    def batch_shape(self) -> torch.Size:
        shape: torch.Size = self._model.batch_shape
        return shape

    def posterior(self, X: Tensor, *args: object, **kwargs: object) -> object:
        return self._model.posterior(X[..., : self._d], *args, **kwargs)


def _strips(front: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes above ``R x k x 2`` fronts: k + 1 strips, empty ones for dominated points."""
    R, k, _ = front.shape
    raised = torch.maximum(front, reference)
    order = raised[..., 0].argsort(dim=1, descending=True, stable=True)
    x = raised[..., 0].gather(1, order)
    y = raised[..., 1].gather(1, order).cummax(dim=1).values
    top = torch.full((R, 1), torch.inf, dtype=torch.double)
    floor = reference.expand(R, 2)
    lower = torch.stack([torch.cat([x, floor[:, :1]], 1), torch.cat([floor[:, 1:], y], 1)], dim=-1)
    upper = torch.stack(
        [torch.cat([top, x], 1), torch.full((R, k + 1), torch.inf, dtype=torch.double)], dim=-1
    )
    return lower, upper


def _boxes(front: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes above ``R x k x m`` fronts by BoTorch, padded with empty ones to one number."""
    cut = [FastNondominatedPartitioning(reference, Y=Y).get_hypercell_bounds() for Y in front]
    most = max(bounds.shape[1] for bounds in cut)
    lower = torch.zeros(len(cut), most, front.shape[-1], dtype=torch.double)
    upper = torch.zeros_like(lower)
    for index, bounds in enumerate(cut):
        lower[index, : bounds.shape[1]], upper[index, : bounds.shape[1]] = bounds[0], bounds[1]
    return lower, upper


def _soft(x: Tensor) -> Tensor:
    """A smooth max(x, 0) with a fat tail, so that hopeless candidates can still be told apart."""
    z = x / _TAU
    return _TAU * (z.clamp_min(0.0) + 0.5 / (1.0 + z.square()))
