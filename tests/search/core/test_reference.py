from __future__ import annotations

import pytest

from milp_ray.errors import SearchError
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Objective
from milp_ray.search.core.design import Design
from milp_ray.search.core.pareto import hypervolume
from milp_ray.search.core.reference import exact_ranges, given_point, reference_point
from tests.search.problems import size

NAN = float("nan")
NOTHING = (NAN, NAN)


def test_inferred_is_the_nadir_less_a_tenth_of_the_fronts_range() -> None:
    point = reference_point([(2, 0), (0, 4), (-9, -9)], NOTHING)
    assert point is not None
    assert point.tolist() == pytest.approx([-0.2, -0.4])


def test_inferred_from_a_front_of_one_uses_all_observations() -> None:
    point = reference_point([(2, 4), (1, 2)], NOTHING)
    assert point is not None
    assert point.tolist() == pytest.approx([1.9, 3.8])


@pytest.mark.parametrize("y", [(2.0, -4.0), (0.0, 0.0)])
def test_a_single_observation_has_volume(y: tuple[float, float]) -> None:
    point = reference_point([y], NOTHING)
    assert point is not None
    assert hypervolume([y], point.tolist()) > 0


def test_given_stays_fixed_while_it_is_beaten() -> None:
    for Y in ([(1, 1)], [(1, 1), (9, -50)], [(1, 1), (5, 5), (7, 2)]):
        point = reference_point(Y, (0.0, 0.5))
        assert point is not None
        assert point.tolist() == [0.0, 0.5]


def test_given_is_lowered_while_nothing_beats_it_in_everything() -> None:
    Y = [(2.0, -1.0), (-1.0, 3.0)]
    point = reference_point(Y, (0.0, 0.0))
    assert point is not None
    assert point.tolist() == pytest.approx([-1.3, -1.4])
    assert all(hypervolume([y], point.tolist()) > 0 for y in Y)
    worse = reference_point([(-5.0, -5.0)], (0.0, 0.0))
    assert worse is not None
    assert hypervolume([(-5.0, -5.0)], worse.tolist()) > 0


def test_without_observations_only_a_complete_reference_is_one() -> None:
    known = reference_point([], (1.0, 2.0))
    assert known is not None
    assert known.tolist() == [1.0, 2.0]
    assert reference_point([], (1.0, NAN)) is None


def test_rows_with_nan_do_not_count_and_order_does_not_matter() -> None:
    Y = [(2.0, 0.0), (0.0, 4.0), (NAN, 9.0)]
    one, other = reference_point(Y, NOTHING), reference_point(Y[::-1], NOTHING)
    assert one is not None and other is not None
    assert one.tolist() == other.tolist()


def test_a_missing_component_is_inferred() -> None:
    point = reference_point([(2.0, 0.0), (0.0, 4.0)], (-1.0, NAN))
    assert point is not None
    assert point.tolist() == pytest.approx([-1.0, -0.4])


def test_an_exact_component_comes_from_the_space_unless_it_can_be_beaten() -> None:
    space = MemorySpace(num_layers=3, max_loras=3, ranks=(8, 16))
    objectives = (Objective("loss", "min"), Objective("size", "min", exact=size))
    ranges = exact_ranges(space, objectives, Design(space, 0).first(100))
    assert ranges == (None, (-48000.0, -8000.0))
    no_memory = given_point(objectives, {"loss": 2.0, "size": 0.0}, ranges)
    assert no_memory == pytest.approx((-2.0, -52000.0))
    assert given_point(objectives, {"loss": 2.0}, ranges) == pytest.approx((-2.0, -52000.0))
    assert given_point(objectives, {"loss": 2.0, "size": 30000.0}, ranges) == (-2.0, -30000.0)
    nothing = given_point(objectives, None, ranges)
    assert nothing[0] != nothing[0]
    assert nothing[1] == pytest.approx(-52000.0)


def test_an_exact_objective_that_is_not_finite_is_found_before_the_first_trial() -> None:
    space = MemorySpace(num_layers=3, max_loras=3, ranks=(8, 16))
    objectives = (Objective("loss", "min"), Objective("size", "min", exact=lambda p: float("inf")))
    with pytest.raises(SearchError, match="finite"):
        exact_ranges(space, objectives, Design(space, 0).first(2))
