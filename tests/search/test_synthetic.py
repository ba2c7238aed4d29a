"""Synthetic users of every size have values; every search gets through the smallest spaces."""

from __future__ import annotations

import math

import pytest

from milp_ray.memory.placement import Placement
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Engine
from milp_ray.search.synthetic import OBJECTIVES, SyntheticProblem


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 7])
def test_a_model_of_any_depth_has_values(layers: int) -> None:
    for related in (0.0, 0.5):
        problem = SyntheticProblem(layers, seed=3, related=related)
        found = problem.measure(Placement(((layers - 1, 16),)))
        assert all(map(math.isfinite, found.values())) and found.keys() == {"loss", "rouge_l"}
        assert found != problem.no_memory


@pytest.mark.parametrize("surrogate", ["random", "gp", "map_saas"])
@pytest.mark.parametrize("layers, loras, ranks", [(1, 1, (8,)), (1, 1, (8, 16)), (1, 2, (8,)), (2, 1, (8,))])
def test_the_smallest_spaces_are_searched_to_their_end(
    surrogate: str, layers: int, loras: int, ranks: tuple[int, ...]
) -> None:
    problem = SyntheticProblem(layers, ranks=ranks)
    space = MemorySpace(layers, loras, ranks)
    reference = problem.no_memory
    engine = Engine(space, OBJECTIVES, initial=1, surrogate=surrogate, trials=9, reference=reference)
    while proposals := engine.ask(1):
        engine.tell(proposals[0].id, problem.measure(proposals[0].placement))
    assert engine.exhausted and engine.observations and engine.front()
