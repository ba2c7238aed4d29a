"""The searches find better fronts than chance, on a problem whose answer is known."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from gpytorch.utils.errors import NanError, NotPSDError

from milp_ray.memory.placement import Placement
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Engine
from milp_ray.search.acquisition.log_nehvi import Acquisition
from milp_ray.search.core.local_search import LocalSearch
from milp_ray.search.surrogates.base import SurrogateFailed
from milp_ray.search.surrogates.gp import Gp
from tests.search.problems import LOSS_AND_ROUGE, TINY_SAAS, small_space
from tests.search.problems import run as run_small

SPACE = MemorySpace(num_layers=8, max_loras=8, ranks=(8, 16, 32, 64))
REFERENCE = {"loss": 3.0, "rouge_l": 0.0}
STRENGTH = (-0.3, -0.2, 0.0, 0.1, 0.0, 0.5, 0.7, 0.0)


def measure(placement: Placement) -> dict[str, float]:
    """Two strong upper layers, harmful lower ones; ROUGE-L wants another layer and a small size."""
    ranks = placement.as_dict()
    gain = sum(STRENGTH[layer] * math.tanh(rank / 24) for layer, rank in ranks.items())
    rouge = 0.3 * math.tanh(ranks.get(3, 0) / 16) + 0.2 - 0.001 * sum(ranks.values())
    return {"loss": 2.9 - gain, "rouge_l": max(rouge, 0.0)}


def final(surrogate: str, seed: int, model_trials: int = 20) -> float:
    engine = Engine(
        SPACE,
        LOSS_AND_ROUGE,
        initial=20,
        batch=5,
        surrogate=surrogate,
        search=LocalSearch(draws=64, climbers=3, rounds=6),
        seed=seed,
        reference=REFERENCE,
    )
    while len(engine.observations) < 20 + model_trials:
        for proposal in engine.ask(5):
            engine.tell(proposal.id, measure(proposal.placement))
    return engine.hypervolume_curve()[-1]


def test_gp_beats_random() -> None:
    seeds = range(3)
    gp = [final("gp", seed) for seed in seeds]
    chance = [final("random", seed) for seed in seeds]
    assert statistics.median(gp) > 1.1 * statistics.median(chance)
    assert all(better > worse for better, worse in zip(gp, chance, strict=True))


def test_saas_runs_from_end_to_end() -> None:
    engine = Engine(
        small_space(),
        LOSS_AND_ROUGE,
        initial=6,
        batch=2,
        surrogate="saas",
        surrogate_options=TINY_SAAS,
        search=LocalSearch(draws=32, climbers=2, rounds=4),
        seed=1,
        reference={"loss": 3.0, "rouge_l": 0.0},
    )
    run_small(engine, 16, k=2)
    curve = engine.hypervolume_curve()
    assert {p.source for p in engine.proposals[6:]} == {"saas"}
    assert curve[-1] > curve[5]
    assert not engine.notes


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SurrogateFailed("gp: ValueError"), "gp: ValueError"),
        (NotPSDError("not positive definite"), "gp: NotPSDError"),
        (NanError("nan"), "gp: NanError"),
        (torch.linalg.LinAlgError("singular"), "gp: _LinAlgError"),
        (np.linalg.LinAlgError("singular"), "gp: LinAlgError"),
        (OverflowError("math range error"), "gp: OverflowError"),
    ],
)
@pytest.mark.parametrize("where", ["fit", "acquisition"])
def test_when_no_model_can_be_had_the_search_goes_on(
    error: Exception, reason: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = broken_engine(error, where, monkeypatch)
    assert [proposal.source for proposal in engine.ask(2)] == ["sobol", "sobol"]
    assert engine.notes == (f"{reason}; sobol proposed instead",)


def test_a_bug_in_a_model_is_no_failed_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = broken_engine(KeyError("a bug"), "fit", monkeypatch)
    with pytest.raises(KeyError, match="a bug"):
        engine.ask(2)


def broken_engine(error: Exception, where: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    def broken(*_: object, **__: object) -> None:
        raise error

    place = (Gp, "fit") if where == "fit" else (Acquisition, "__init__")
    monkeypatch.setattr(*place, broken)
    engine = Engine(small_space(), LOSS_AND_ROUGE, initial=2, surrogate="gp", seed=1)
    run_small(engine, 2)
    return engine
