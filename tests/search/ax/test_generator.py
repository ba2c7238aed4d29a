"""Ax's own generators, as they are offered for comparison."""

from __future__ import annotations

import random

import pytest
from botorch.acquisition.multi_objective import logei

from milp_ray.memory.space import MemorySpace
from milp_ray.search import Engine
from milp_ray.search.ax.export import config_of, parameters_of
from tests.search.problems import LOSS_AND_ROUGE, REFERENCE, run, small_space


@pytest.mark.parametrize("name", ["ax:fast", pytest.param("ax:quality", marks=pytest.mark.nightly)])
def test_proposes_members_that_are_new(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logei, "_load_attempted", True)  # its C++ extension takes long to build
    made = Engine(small_space(), LOSS_AND_ROUGE, initial=6, batch=2, surrogate=name, reference=REFERENCE)
    run(made, 8, k=2)
    assert len({proposal.placement.key for proposal in made.proposals}) == 8
    assert {proposal.source for proposal in made.proposals[6:]} == {name}


@pytest.mark.parametrize(
    "space",
    [
        small_space(),
        MemorySpace(num_layers=5, max_loras=5, ranks=(4, 8), factors="layer"),
        MemorySpace(num_layers=5, max_loras=3, ranks=(4, 8), factors="num+size", default_layers=(1, 3)),
    ],
    ids=lambda s: s.searched,
)
def test_parameters_and_configurations_are_two_ways_to_say_the_same(space: MemorySpace) -> None:
    rng = random.Random(0)
    for _ in range(20):
        config = space.sample(rng)
        assert config_of(space, parameters_of(space, config)) == config
