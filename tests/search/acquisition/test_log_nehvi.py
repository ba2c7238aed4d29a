from __future__ import annotations

import pytest
import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.acquisition.multi_objective import logei
from botorch.sampling.normal import SobolQMCNormalSampler
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from torch import Tensor

from milp_ray.search.acquisition.log_nehvi import Acquisition, _BoxDecomposition, with_exact
from milp_ray.search.core.pareto import hypervolume
from milp_ray.search.surrogates import make_surrogate
from milp_ray.search.surrogates.base import Fitted, ModelSurrogate
from tests.search.problems import TINY_SAAS

D = 5
NONE = torch.empty(0, D, dtype=torch.double)


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def problem(m: int, n: int = 14, seed: int = 0) -> tuple[Tensor, Tensor]:
    X = uniform(n, D, seed=seed)
    columns = [-((X[:, i] - 0.6) ** 2) * 4 + 0.5 * X[:, (i + 1) % D] for i in range(m)]
    Y = torch.stack(columns, dim=1) + 0.05 * uniform(n, m, seed=seed + 1)
    return X, (Y - Y.mean(0)) / Y.std(0)


def fit(name: str, X: Tensor, Y: Tensor) -> Fitted:
    surrogate = make_surrogate(name, TINY_SAAS if name == "saas" else {})
    assert isinstance(surrogate, ModelSurrogate)
    return surrogate.fit(X, Y, 0)


def below(m: int) -> Tensor:
    return torch.full((m,), -1.0, dtype=torch.double)


@pytest.mark.parametrize(("name", "m"), [("gp", 1), ("gp", 2), ("gp", 3), ("saas", 2)])
@pytest.mark.parametrize("pending", [0, 2])
def test_ranks_candidates_as_botorch_does(
    name: str, m: int, pending: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logei, "_load_attempted", True)  # its C++ extension takes long to build
    X, Y = problem(m)
    fitted = fit(name, X, Y)
    waiting, candidates = uniform(pending, D, seed=7), uniform(120, D, seed=8)
    sampler = SobolQMCNormalSampler(torch.Size([128]), seed=1)
    common = {"X_baseline": X, "X_pending": waiting if pending else None, "prune_baseline": True}
    theirs = (
        qLogNoisyExpectedImprovement(fitted.model.models[0], sampler=sampler, **common)
        if m == 1
        else logei.qLogNoisyExpectedHypervolumeImprovement(
            fitted.model, below(m).tolist(), sampler=sampler, **common
        )
    )
    models = with_exact(fitted, [], m, D)
    ours = Acquisition(models, below(m), X, waiting, seed=1, num_samples=128)(candidates)
    with torch.no_grad():
        expected = theirs(candidates.unsqueeze(1))
    assert spearmanr(ours, expected).statistic > 0.97
    assert float(expected[ours.argmax()]) > float(expected.quantile(0.97))
    # The improvement itself, in its unit, where there is any worth speaking of.
    top = (expected > expected.median()) & (expected > -6)
    assert float((ours[top] - expected[top]).abs().median()) < 0.3


@pytest.mark.parametrize("m", [1, 2, 3])
def test_boxes_give_the_exact_hypervolume_gained(m: int) -> None:
    front, candidates = uniform(4, 6, m, seed=1), uniform(4, 10, m, seed=2) * 1.5
    reference = torch.full((m,), 0.2, dtype=torch.double)
    gained = _BoxDecomposition(front, reference).log_hvi(candidates.unbind(-1)).exp()
    expected = torch.zeros(10, dtype=torch.double)
    for draw in range(4):
        known = front[draw].tolist()
        ref_point = reference.tolist() if m > 1 else [float(front[draw].max())]
        before = hypervolume(known, ref_point)
        for index, row in enumerate(candidates[draw].tolist()):
            expected[index] += (hypervolume([*known, row], ref_point) - before) / 4
    assert torch.allclose(gained, expected, atol=2e-2 if m > 1 else 2e-3)


def test_a_pending_point_takes_its_own_neighbourhood_away() -> None:
    X, Y = problem(2)
    fitted = fit("gp", X, Y)
    acquisition = Acquisition(with_exact(fitted, [], 2, D), below(2), X, NONE, seed=0)
    candidates = uniform(200, D, seed=3)
    before = acquisition(candidates)
    best = int(before.argmax())
    acquisition.add_pending(candidates[best : best + 1])
    after = acquisition(candidates)
    assert float(after[best]) < float(before[best]) - 1
    assert int(after.argmax()) != best
    fresh = Acquisition(with_exact(fitted, [], 2, D), below(2), X, candidates[best : best + 1], seed=0)
    assert torch.allclose(fresh(candidates), after)


def test_an_exact_objective_is_taken_at_its_word() -> None:
    X, Y = problem(1)
    fitted = fit("gp", X, Y)
    cost = -X.sum(dim=1, keepdim=True)
    models = with_exact(fitted, [1], 2, D)
    inputs = torch.cat([X, cost], dim=1)
    assert torch.equal(models[1].posterior_samples(inputs, inputs[:1, :0])[0, 0], cost[:, 0])
    reference = torch.tensor([-3.0, float(cost.min()) - 1], dtype=torch.double)
    acquisition = Acquisition(models, reference, inputs, inputs[:0], seed=0)
    same = X[:1].repeat(3, 1)
    costs = torch.tensor([[0.0], [-1.0], [-2.0]], dtype=torch.double)
    values = acquisition(torch.cat([same, costs], dim=1))
    assert values.tolist() == sorted(values.tolist(), reverse=True)
    beyond = torch.cat([same[:1], reference[1:].reshape(1, 1) - 5], dim=1)
    assert float(acquisition(beyond)) < float(values[2]) - 2


def test_fixed_draws_make_it_a_function() -> None:
    X, Y = problem(2)
    fitted = fit("gp", X, Y)
    candidates = uniform(300, D, seed=4)
    one, two, other = (
        Acquisition(with_exact(fitted, [], 2, D), below(2), X, NONE, seed=seed)(candidates)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    alone = Acquisition(with_exact(fitted, [], 2, D), below(2), X, NONE, seed=1)(candidates[:7])
    assert torch.allclose(alone, one[:7], atol=1e-6)


def test_hopeless_candidates_can_still_be_told_apart() -> None:
    front = torch.zeros(1, 1, 2, dtype=torch.double)
    boxes = _BoxDecomposition(front, torch.full((2,), -1.0, dtype=torch.double))
    values = boxes.log_hvi([torch.tensor([[-0.3, -0.2, -0.1]], dtype=torch.double)] * 2)
    assert values.tolist() == sorted(values.tolist())
    assert bool(values.isfinite().all())
