"""Log noisy expected hypervolume improvement of many discrete candidates at once.

The quantity is that of qLogNEHVI with q = 1 (docs/references.md: Daulton 2021, eq. 6; logarithm and
fat-tailed smoothing after Ament 2023, section 4.2): how much volume a candidate adds to the front
of the observed *and* pending points, averaged over joint draws of all their values, so that neither
noise nor a pending trial is taken at its word. More proposals come one after the other, each with
the earlier ones pending.

BoTorch's own class takes a posterior per candidate and a box decomposition per draw, made for gradients.
Nothing here needs a gradient: everything that does not depend on candidates is factored once
(:mod:`milp_ray.search.acquisition.posterior`), and strips instead of boxes for two objectives keep it light,
and no C++ extension has to be built; tests/search/acquisition/test_log_nehvi.py holds it to BoTorch's values.
An exact objective is a further input column that is handed through (:func:`with_exact`). With one objective
it is log noisy expected improvement.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from botorch.utils.multi_objective.box_decompositions.non_dominated import FastNondominatedPartitioning
from torch import Tensor
from torch.quasirandom import SobolEngine

from milp_ray.search.acquisition.posterior import ExactColumn, GaussianOutput, Output
from milp_ray.search.surrogates.base import Fitted

_CHUNK = 512  # candidates per matrix product
_KEPT = 32  # observed points that can matter for the front, at most
_DRAWS = 128  # of all components together, at least
_TAU = 1e-3  # smoothing of "no improvement", in standard deviations of an outcome
_CELLS = 1 << 23  # numbers in the largest intermediate tensor


class Acquisition:
    """The acquisition of one fit, for candidates given as rows of inputs.

    Args:
        outputs: all m objectives, each to be maximised, see :func:`with_exact`.
        reference: ``m`` double tensor, to be maximised; not used for m = 1.
        observed: ``n x D`` inputs of the observations, n ≥ 1.
        pending: ``p x D`` inputs of proposals that have not ended.
        seed: of the draws, which stay fixed from call to call.
        draws: M per component; None: enough for the number of objectives (three need a slow decomposition
            each) and components.
    """

    def __init__(
        self,
        outputs: Sequence[Output],
        reference: Tensor,
        observed: Tensor,
        pending: Tensor,
        *,
        seed: int,
        draws: int | None = None,
    ) -> None:
        self._outputs = list(outputs)
        self._components = max(output.components for output in outputs)
        self._reference = reference
        self._seed = seed
        total = _DRAWS if len(self._outputs) < 3 else _DRAWS // 4
        self._draws = draws or max(8, total // self._components)
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
        rows = self._rows(observed, self._noise(len(observed)))  # R x n x m
        share = torch.zeros(len(observed), dtype=torch.double)
        for part in torch.split(rows, max(1, _CELLS // max(1, len(observed) ** 2))):
            better = torch.ones(len(part), len(observed), len(observed), dtype=torch.bool)
            strictly = torch.zeros_like(better)
            for value in part.unbind(-1):
                better &= value.unsqueeze(1) >= value.unsqueeze(2)
                strictly |= value.unsqueeze(1) > value.unsqueeze(2)
            share += (~(better & strictly).any(-1)).sum(0)
        order = share.argsort(descending=True, stable=True)[:_KEPT]
        return observed[order[share[order] > 0].sort().values]

    def _condition(self) -> None:
        """Draw the values of what is known, and lay out the volume that is still to be gained above them."""
        known = torch.cat([self._observed, self._pending])
        noise = self._noise(len(known) + 1)
        weights, self._own = noise[..., :-1], noise[..., -1]
        self._given = [output.given(known, weights[index]) for index, output in enumerate(self._outputs)]
        self._gaps = _Gaps(self._rows(known, weights), self._reference)

    def _rows(self, X: Tensor, noise: Tensor) -> Tensor:
        """Joint draws at ``k x D`` points as ``R x k x m``, R = S·M fronts."""
        S, M, k = self._components, self._draws, len(X)
        drawn = [output.draws(X, noise[index]).expand(S, M, k) for index, output in enumerate(self._outputs)]
        return torch.stack(drawn, dim=-1).reshape(S * M, k, len(drawn))

    def _chunk(self, X: Tensor) -> Tensor:
        S, M, c = self._components, self._draws, len(X)
        drawn = []
        for index, given in enumerate(self._given):
            centre, spread = given(X)
            values = centre + spread[:, None, :] * self._own[index][None, :, None]
            drawn.append(values.expand(S, M, c).reshape(S * M, c))
        return self._gaps.log_gain(drawn)

    def _noise(self, count: int) -> Tensor:
        """``m x M x count`` standard normal quasi-random draws, the same for the same count."""
        m = len(self._outputs)
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
            lower, upper = _without_empty(*_strips(front, reference))
        else:
            lower, upper = _boxes(front, reference)
        self._lower, self._width = lower, upper - lower

    def log_gain(self, values: Sequence[Tensor]) -> Tensor:
        """Log of the smoothed volume gained, averaged over draws; ``values``: m times ``R x c``, result
        ``c``."""
        R, c = values[0].shape
        boxes = self._lower.shape[1]
        gained = torch.zeros(c, dtype=torch.double)
        step = max(1, _CELLS // (R * c))
        for first in range(0, boxes, step):
            area: Tensor | None = None
            for index, value in enumerate(values):
                low = self._lower[:, None, first : first + step, index]
                width = self._width[:, None, first : first + step, index]
                side = torch.minimum(_soft(value.unsqueeze(-1) - low), width)
                area = side if area is None else area.mul_(side)
            assert area is not None
            gained += area.sum(-1).mean(0)
        return gained.clamp_min(1e-300).log()


def with_exact(fitted: Fitted, exact: list[int], m: int, d: int) -> list[Output]:
    """All m objectives over ``d + len(exact)`` input columns.

    Args:
        fitted: models of the measured objectives, in order; they read the first d columns.
        exact: positions of the exact objectives among all m; the j-th is handed through from column d + j.
        m: number of objectives.
        d: number of features.
    """
    measured = iter(fitted.model.models)
    return [
        ExactColumn(d + exact.index(index)) if index in exact else GaussianOutput(next(measured))
        for index in range(m)
    ]


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


def _without_empty(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Only as many boxes a draw as the draw with most has: those of dominated points are empty."""
    filled = ((upper - lower) > 0).all(dim=-1)
    most = int(filled.sum(dim=1).max())
    first = (~filled).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    index = first.unsqueeze(-1).expand(-1, -1, lower.shape[-1])
    # Whatever a draw has too many of stays empty: its width is 0 in one direction.
    return lower.gather(1, index), upper.gather(1, index)


def _boxes(front: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes above ``R x k x m`` fronts by BoTorch (docs/references.md: Lacour 2017), padded with
    empty ones to one number."""
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
    tail = z.square().add_(1.0).reciprocal_().mul_(0.5)
    return z.clamp_min_(0.0).add_(tail).mul_(_TAU)
