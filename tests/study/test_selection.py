"""Which point of a front is chosen, by each policy."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from milp_ray.config.models import ChooseSettings
from milp_ray.errors import SearchError
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.placement import Placement
from milp_ray.search import Objective, Observation
from milp_ray.study.selection import select

OBJECTIVES = (Objective("loss", "min"), Objective("rouge_l", "max"))
# Parameters of a placement in this test: its total rank.
SIZES = SimpleNamespace(trainable_params=lambda placement: sum(rank for _, rank in placement.ranks))


def seen(number: int, rank: int, loss: float, rouge: float) -> Observation:
    config = MemoryConfig((True,), 1, rank)
    return Observation(number, config, Placement(((0, rank),)), {"loss": loss, "rouge_l": rouge})


def searched(front: list[Observation], *others: Observation) -> SimpleNamespace:
    """What `select` needs of an engine."""
    return SimpleNamespace(front=lambda: front, observations=[*front, *others], objectives=OBJECTIVES)


FRONT = [seen(0, 64, 2.0, 0.10), seen(1, 32, 2.1, 0.19), seen(2, 8, 2.6, 0.20)]


@pytest.mark.parametrize(
    ("policy", "budget", "expected"),
    [
        ("knee", None, 1),
        ("best:loss", None, 0),
        ("best:rouge_l", None, 2),
        ("budget", 100, 0),
        ("budget", 40, 1),
        ("budget", 31, 2),
        ("budget", 1, 2),  # nothing is that small: the smallest
    ],
)
def test_policies(policy: str, budget: int | None, expected: int) -> None:
    settings = ChooseSettings(policy=policy, budget=budget)
    for front in (FRONT, FRONT[::-1]):
        assert select(searched(front), settings, SIZES).id == expected  # type: ignore[arg-type]


def test_a_single_point_and_an_empty_front() -> None:
    settings = ChooseSettings()
    assert select(searched(FRONT[:1]), settings, SIZES).id == 0  # type: ignore[arg-type]
    with pytest.raises(SearchError, match="milp-ray show"):
        select(searched([]), settings, SIZES)  # type: ignore[arg-type]


def test_a_budget_may_take_a_trial_that_is_not_on_the_front() -> None:
    small = seen(3, 4, 2.7, 0.05)  # dominated, and the only one that fits
    settings = ChooseSettings(policy="budget", budget=5)
    assert select(searched(FRONT, small), settings, SIZES).id == 3  # type: ignore[arg-type]
