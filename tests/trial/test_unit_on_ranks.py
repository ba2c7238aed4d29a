"""A population's trial on two ranks, a whole base or a divided one: the numbers of one process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from milp_ray.config.models import ModelSettings, Study
from milp_ray.data.records import UserSplit
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel, load_base
from milp_ray.model.parallel.group import Group
from milp_ray.model.parallel.sharding import Parallel
from milp_ray.trial.unit import SearchUnit, shared_user
from tests.trial.ranks import on_ranks
from tests.trial.test_parallel import study_of

pytestmark = pytest.mark.slow


def divided(user: UserSplit) -> SearchUnit:
    """Two validation users, and a train user's samples."""
    held_out = [
        replace(user, alias=f"u-{letter * 13}", history=user.history[start:], train=(), test=(), search_cut=6)
        for start, letter in enumerate("bc")
    ]
    shared = shared_user("population", [replace(user, validation=(), test=())], [])
    return SearchUnit("population", tuple(held_out), shared)


def values(base: BaseModel, user: UserSplit, study: Study) -> dict[str, Any]:
    trial = divided(user).trial(base, Placement.from_key("0:4,1:8"), study, seed=3)
    for _ in trial.steps():
        pass
    assert trial.result is not None
    return {"loss": trial.result.loss, "tokens": trial.cost().train_tokens}


def on_rank(group: Group, model: str, user: UserSplit, strategy: Literal["ddp", "fsdp"]) -> dict[str, Any]:
    base = load_base(ModelSettings(path=model, device="cpu"), Parallel(group, strategy, False))
    return values(base, user, study_of(model))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_measure_a_population_as_a_single_process_does(
    strategy: str, shallow_model: Any, tiny_user: UserSplit
) -> None:
    model = str(shallow_model)
    alone = values(load_base(ModelSettings(path=model, device="cpu")), tiny_user, study_of(model))
    ranks = on_ranks(on_rank, model, tiny_user, strategy)
    assert [found["loss"] for found in ranks] == pytest.approx([alone["loss"]] * 2, abs=1e-5)
    assert [found["tokens"] for found in ranks] == [alone["tokens"]] * 2
