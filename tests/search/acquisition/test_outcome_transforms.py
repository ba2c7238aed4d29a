from __future__ import annotations

import numpy as np
import pytest

from milp_ray.errors import SearchError
from milp_ray.search import Engine
from milp_ray.search.acquisition.outcome_transforms import Copula, PlanTensors, Standardized
from milp_ray.search.propose import propose
from tests.search.problems import LOSS_AND_ROUGE, REFERENCE, run, small_space


@pytest.mark.parametrize("kind", [Standardized, Copula])
def test_maps_are_monotone_inside_and_beyond(kind: type[Standardized] | type[Copula]) -> None:
    known = np.array([3.0, -1.0, 7.0, 2.0, 2.0])
    scaled = kind(known)(np.linspace(-20, 20, 200))
    assert (np.diff(scaled) > 0).all()
    assert np.isfinite(scaled).all()


def test_standardized_has_mean_0_and_deviation_1() -> None:
    values = np.array([1e9, 1e9 + 1, 1e9 + 5])
    scaled = Standardized(values)(values)
    assert scaled.mean() == pytest.approx(0.0, abs=1e-6)
    assert scaled.std() == pytest.approx(1.0)
    assert np.isfinite(Standardized(np.full(3, 1e308))(np.full(3, 1e308))).all()


def test_copula_takes_ranks_and_ties_at_their_mean() -> None:
    scaled = Copula(np.array([0.0, 1.0, 1.0, 1e6]))(np.array([0.0, 1.0, 1e6]))
    assert scaled == pytest.approx([-1.15035, 0.0, 1.15035], abs=1e-4)
    assert np.isfinite(Copula(np.array([4.0]))(np.array([4.0, 5.0]))).all()


def test_the_reference_goes_through_the_same_map() -> None:
    engine = run(
        Engine(
            small_space(), LOSS_AND_ROUGE, initial=8, surrogate="gp", outcome="copula", reference=REFERENCE
        ),
        8,
    )
    plan = engine.plan(2)
    data = PlanTensors(plan)
    below = np.array([row[0] for row in plan.maximized]) < -REFERENCE["loss"]
    assert ((data.Y[:, 0] < data.ref_point[0]).numpy() == below).all()
    assert len(propose(plan)) == 2


def test_an_unknown_outcome_is_refused() -> None:
    with pytest.raises(SearchError, match="standardize or copula"):
        Engine(small_space(), LOSS_AND_ROUGE, outcome="log")
