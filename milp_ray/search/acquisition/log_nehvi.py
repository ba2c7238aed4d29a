"""Log noisy expected hypervolume improvement of many discrete candidates at once.

The quantity is that of qLogNEHVI with q = 1 (docs/references.md: Daulton 2021, eq. 6; logarithm and
fat-tailed smoothing after Ament 2023, section 4.2): how much volume a candidate adds to the front
of the observed *and* pending points, averaged over joint posterior samples of all their values.
Neither noise nor a pending trial is so taken at its word. Further proposals come one after the
other, each with the earlier ones pending.

BoTorch's own class takes a posterior per candidate and a box decomposition per sample, made for
gradients. Nothing here needs a gradient: what does not depend on candidates is factored once
(:mod:`milp_ray.search.acquisition.posterior`), two objectives take strips in place of boxes, and no
C++ extension has to be built. tests/search/acquisition/test_log_nehvi.py holds it to BoTorch's
values. An exact objective is a further input column that is handed through (:func:`with_exact`).
With one objective it is log noisy expected improvement.

Sizes in comments: m objectives, n observations, p pending points, k known points (of both kinds),
c candidates, D input columns; S mixture components, M samples a component, R = S·M samples in all,
B boxes above a front.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from botorch.utils.multi_objective.box_decompositions.non_dominated import FastNondominatedPartitioning
from torch import Tensor
from torch.quasirandom import SobolEngine

from milp_ray.search.acquisition.posterior import ExactColumn, GaussianOutput, Output
from milp_ray.search.core.pareto import strips
from milp_ray.search.surrogates.base import Fitted

_CHUNK = 512  # candidates per matrix product
_MAX_BASELINE = 32  # observed points that can matter for the front, at most
_SAMPLES = 128  # of all components together, at least
_TAU = 1e-3  # smoothing of "no improvement", in standard deviations of an outcome
_MAX_NUMEL = 1 << 23  # numbers in the largest intermediate tensor


class Acquisition:
    """The acquisition of one fit, for candidates given as rows of inputs.

    Args:
        outputs: all m objectives, each to be maximised, see :func:`with_exact`.
        ref_point: ``m`` double tensor, to be maximised; not used for m = 1.
        X_baseline: ``n x D`` inputs of the observations, n ≥ 1.
        X_pending: ``p x D`` inputs of proposals that have not ended.
        seed: of the base samples, which stay fixed from call to call.
        num_samples: M per component; None: enough for the number of objectives (three need a slow
            decomposition each) and components.
    """

    def __init__(
        self,
        outputs: Sequence[Output],
        ref_point: Tensor,
        X_baseline: Tensor,
        X_pending: Tensor,
        *,
        seed: int,
        num_samples: int | None = None,
    ) -> None:
        self._outputs = list(outputs)
        self._components = max(output.components for output in outputs)
        self._ref_point = ref_point
        self._seed = seed
        total = _SAMPLES if len(self._outputs) < 3 else _SAMPLES // 4
        self._num_samples = num_samples or max(8, total // self._components)
        with torch.no_grad():
            self._X_baseline = self._prune_baseline(X_baseline)
            self._X_pending = X_pending
            self._condition()

    @torch.no_grad()
    def __call__(self, X: Tensor) -> Tensor:
        """Log of the expected improvement of each candidate alone.

        Args:
            X: ``c x D`` candidates.

        Returns:
            ``c`` finite numbers; more is better.
        """
        return torch.cat([self._log_nehvi(part) for part in torch.split(X, _CHUNK)])

    @torch.no_grad()
    def add_pending(self, X: Tensor) -> None:
        """Take ``k x D`` further inputs as pending."""
        self._X_pending = torch.cat([self._X_pending, X])
        self._condition()

    def _prune_baseline(self, X: Tensor) -> Tensor:
        """The observations that are on the front in at least one sample; no other can matter."""
        n = len(X)
        # 1) sample what the observations may be worth without noise
        samples = self._posterior_samples(X, self._base_samples(n))  # R x n x m
        # 2) count the samples in which no other observation dominates one
        on_front = torch.zeros(n, dtype=torch.double)
        for part in torch.split(samples, max(1, _MAX_NUMEL // max(1, n**2))):  # r x n x m of R
            at_least = torch.ones(len(part), n, n, dtype=torch.bool)  # r x (dominated) n x (by) n
            better = torch.zeros_like(at_least)
            for value in part.unbind(-1):  # r x n, once an objective
                at_least &= value.unsqueeze(1) >= value.unsqueeze(2)  # r x 1 x n >= r x n x 1
                better |= value.unsqueeze(1) > value.unsqueeze(2)
            on_front += (~(at_least & better).any(-1)).sum(0)  # r x n -> n
        # 3) keep those that are on it most often, in the order in which they were observed
        order = on_front.argsort(descending=True, stable=True)[:_MAX_BASELINE]
        return X[order[on_front[order] > 0].sort().values]

    def _condition(self) -> None:
        """Condition outputs on samples of what is known; divide the space above their fronts."""
        # 1) observed and pending points count alike: neither has a value, both have a distribution
        known = torch.cat([self._X_baseline, self._X_pending])  # k x D
        # 2) one base sample more than points: the last column is what candidates are sampled with
        base_samples = self._base_samples(len(known) + 1)  # m x M x (k + 1)
        of_known, self._of_candidate = base_samples[..., :-1], base_samples[..., -1]  # m x M x k, m x M
        # 3) given these samples, each output is Gaussian again at any candidate
        self._conditioned = [
            output.condition_on(known, of_known[index]) for index, output in enumerate(self._outputs)
        ]
        # 4) the space that is still to be gained, sample by sample
        fronts = self._posterior_samples(known, of_known)  # R x k x m
        self._boxes = _BoxDecomposition(fronts, self._ref_point)

    def _posterior_samples(self, X: Tensor, base_samples: Tensor) -> Tensor:
        """Joint samples at ``k x D`` points from ``m x M x k`` base samples, as ``R x k x m``."""
        S, M, k = self._components, self._num_samples, len(X)
        # An output that is no mixture has 1 component, and is the same in all S of the others.
        samples = [
            output.posterior_samples(X, base_samples[index]).expand(S, M, k)
            for index, output in enumerate(self._outputs)
        ]
        return torch.stack(samples, dim=-1).reshape(S * M, k, len(samples))  # S x M x k x m -> R x k x m

    def _log_nehvi(self, X: Tensor) -> Tensor:
        """The acquisition at ``c x D`` candidates, few enough for one matrix product."""
        S, M, c = self._components, self._num_samples, len(X)
        samples = []
        for index, conditioned in enumerate(self._conditioned):
            # 1) mean and deviation of the objective, given the sample of all known points
            mean, deviation = conditioned(X)  # S x M x c, S x c
            # 2) one sample of each candidate on its own: candidates are not proposed together
            values = mean + deviation[:, None, :] * self._of_candidate[index][None, :, None]  # S x M x c
            samples.append(values.expand(S, M, c).reshape(S * M, c))  # R x c
        # 3) the volume that it adds to the front of its own sample, averaged over all
        return self._boxes.log_hvi(samples)  # c

    def _base_samples(self, count: int) -> Tensor:
        """``m x M x count`` standard normal quasi-random numbers, the same for the same count."""
        m = len(self._outputs)
        engine = SobolEngine(  # type: ignore[no-untyped-call]
            m * count, scramble=True, seed=self._seed % 2**31
        )
        # The ends are cut off, as their quantiles are infinite.
        uniform = engine.draw(self._num_samples, dtype=torch.double).clamp(1e-9, 1 - 1e-9)  # M x (m·count)
        normal: Tensor = torch.special.ndtri(uniform).reshape(self._num_samples, m, count)  # M x m x count
        return normal.transpose(0, 1)  # m x M x count


class _BoxDecomposition:
    """The space above a front, cut into boxes, for each of R samples; ``fronts``: ``R x k x m``.

    As in BoTorch's FastNondominatedPartitioning, a box reaches from a lower to an upper bound,
    which may be infinite.
    """

    def __init__(self, fronts: Tensor, ref_point: Tensor) -> None:
        m = fronts.shape[-1]
        if m == 1:  # all that lies above the best value
            lower = fronts.max(dim=1).values.unsqueeze(1)  # R x 1 x 1
            upper = torch.full_like(lower, torch.inf)
        elif m == 2:
            lower, upper = _without_empty(*_strips(fronts, ref_point))  # R x B x 2
        else:
            lower, upper = _botorch_boxes(fronts, ref_point)  # R x B x m
        self._lower, self._width = lower, upper - lower

    def log_hvi(self, samples: Sequence[Tensor]) -> Tensor:
        """Log of the smoothed hypervolume improvement, averaged over samples.

        Args:
            samples: ``R x c`` values of the candidates, one such tensor an objective.

        Returns:
            ``c`` finite numbers.
        """
        R, c = samples[0].shape
        boxes = self._lower.shape[1]
        improvement = torch.zeros(c, dtype=torch.double)
        step = max(1, _MAX_NUMEL // (R * c))
        for first in range(0, boxes, step):  # as many boxes at once as memory allows: b of B
            volume: Tensor | None = None
            for index, values in enumerate(samples):
                lower = self._lower[:, None, first : first + step, index]  # R x 1 x b
                width = self._width[:, None, first : first + step, index]  # R x 1 x b
                # 1) how far a candidate reaches into a box in this direction, at most through it;
                #    smoothed, so that one that does not reach it still says how much it lacks
                reach = torch.minimum(_fat_softplus(values.unsqueeze(-1) - lower), width)  # R x c x b
                # 2) the product over objectives is the volume of the box that it dominates
                volume = reach if volume is None else volume.mul_(reach)
            assert volume is not None
            # 3) the boxes of a sample add up, the samples are averaged
            improvement += volume.sum(-1).mean(0)  # R x c x b -> R x c -> c
        # 4) the logarithm tells apart what is far below 1, and a zero must stay finite
        return improvement.clamp_min(1e-300).log()


def with_exact(fitted: Fitted, exact: list[int], m: int, d: int) -> list[Output]:
    """All m objectives over ``d + len(exact)`` input columns.

    Args:
        fitted: models of the measured objectives, in order; they read the first d columns.
        exact: positions of the exact objectives among all m; the j-th is handed through from column
            d + j.
        m: number of objectives.
        d: number of features.
    """
    measured = iter(fitted.model.models)
    return [
        ExactColumn(d + exact.index(index)) if index in exact else GaussianOutput(next(measured))
        for index in range(m)
    ]


def _strips(fronts: Tensor, ref_point: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes above ``R x k x 2`` fronts: k + 1 strips, empty ones for dominated points."""
    left, right, floor = map(torch.from_numpy, strips(fronts.numpy(), ref_point.numpy()))  # R x (k + 1)
    lower = torch.stack([left, floor], dim=-1)  # R x (k + 1) x 2
    upper = torch.stack([right, torch.full_like(floor, torch.inf)], dim=-1)  # R x (k + 1) x 2
    return lower, upper


def _without_empty(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """As many boxes a sample as the sample with most has: those of dominated points are empty."""
    filled = ((upper - lower) > 0).all(dim=-1)  # R x (k + 1)
    most = int(filled.sum(dim=1).max())  # B
    first = (~filled).to(torch.int8).argsort(dim=1, stable=True)[:, :most]  # R x B: filled ones first
    index = first.unsqueeze(-1).expand(-1, -1, lower.shape[-1])  # R x B x 2
    # Whatever a sample has too many of stays empty: its width is 0 in one direction.
    return lower.gather(1, index), upper.gather(1, index)


def _botorch_boxes(fronts: Tensor, ref_point: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes above ``R x k x m`` fronts by BoTorch (docs/references.md: Lacour 2017).

    Fronts with fewer boxes are padded with empty ones, so that all have ``B``.
    """
    bounds = [FastNondominatedPartitioning(ref_point, Y=Y).get_hypercell_bounds() for Y in fronts]
    most = max(cells.shape[1] for cells in bounds)  # B; cells: 2 x (boxes of this front) x m
    lower = torch.zeros(len(bounds), most, fronts.shape[-1], dtype=torch.double)  # R x B x m
    upper = torch.zeros_like(lower)
    for index, cells in enumerate(bounds):
        lower[index, : cells.shape[1]], upper[index, : cells.shape[1]] = cells[0], cells[1]
    return lower, upper


def _fat_softplus(x: Tensor) -> Tensor:
    """A smooth max(x, 0) with a fat tail, so that hopeless candidates can still be told apart.

    It works in place where it can, as ``x`` is the largest tensor of all.
    """
    z = x / _TAU
    tail = z.square().add_(1.0).reciprocal_().mul_(0.5)  # falls as 1 / z², not as e^z
    return z.clamp_min_(0.0).add_(tail).mul_(_TAU)
