"""What a surrogate says of its search: what matters, what is left to gain, what it predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from milp_ray.config.objectives import objectives_on
from milp_ray.memory.placement import Placement
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Engine
from milp_ray.search.diagnostics import diagnose, plan_of

NAMES = ("loss", "rouge_l")
SPACE = MemorySpace(4, 4, (2, 4, 8))
Measure = Callable[[Placement], Mapping[str, float]]


class PerRank:
    """Stands for a base whose layers are alike."""

    def trainable_params(self, placement: Placement) -> int:
        return 100 * sum(placement.as_dict().values())


def first_layer(placement: Placement) -> Mapping[str, float]:
    """Layer 0 decides the loss, the rank of layer 3 the overlap."""
    ranks = placement.as_dict()
    return {"loss": 2.0 + (0 not in ranks), "rouge_l": 0.1 + 0.05 * math.log2(1 + ranks.get(3, 0))}


def searched(
    measure: Measure = first_layer,
    trials: int = 24,
    names: tuple[str, ...] = NAMES,
    space: MemorySpace = SPACE,
) -> Engine:
    objectives = objectives_on(PerRank(), names)
    engine = Engine(
        space, objectives, initial=trials, batch=trials, surrogate="gp",
        reference={"loss": 3.5, "rouge_l": 0.05}, trials=trials,
    )  # fmt: skip
    for proposal in engine.ask(trials):
        engine.tell(proposal.id, measure(proposal.placement))
    return engine


def numbers(engine: Engine) -> list[int]:
    return [seen.id for seen in engine.observations]


def test_what_decides_an_objective_is_what_matters_most_to_it() -> None:
    engine = searched()
    found = diagnose(plan_of(engine, "gp", {}, "standardize", 0), numbers(engine))
    assert found is not None and found.source == "gp"
    loss, overlap = found.importance["loss"], found.importance["rouge_l"]
    assert loss.keys() == {"layer 0", "layer 1", "layer 2", "layer 3", "n", "rank"}
    assert max(loss, key=loss.__getitem__) == "layer 0"
    assert max(("layer 0", "layer 1", "layer 2", "layer 3"), key=overlap.__getitem__) == "layer 3"
    assert loss["layer 0"] > 3 * loss["layer 1"]
    assert all(0 <= index <= 2 for index in (*loss.values(), *overlap.values()))


def test_predictions_of_what_follows_a_rule_are_in_order_and_covered() -> None:
    engine = searched()
    found = diagnose(plan_of(engine, "gp", {}, "standardize", 0), numbers(engine))
    assert found is not None
    for one in found.left_out:
        assert one.trials == tuple(numbers(engine)) and len(one.measured) == 24
        assert sum(one.measured) == pytest.approx(0, abs=1e-9), "on the model's scale"
        assert one.covered >= 20 and all(deviation > 0 for deviation in one.deviation)
        expected = [(y - mean) / d for y, mean, d in zip(one.measured, one.mean, one.deviation, strict=True)]
        assert one.residuals == pytest.approx(expected)


def test_the_same_plan_gives_the_same_answers() -> None:
    engine = searched()
    one, two = (diagnose(plan_of(engine, "gp", {}, "standardize", 3), numbers(engine)) for _ in range(2))
    assert one is not None and two is not None
    assert one.importance == two.importance and one.gain == two.gain and one.left_out == two.left_out


def test_less_is_expected_where_the_best_is_found() -> None:
    few = searched(trials=6)
    all_tried = MemorySpace(2, 2, (2, 4))
    spent = searched(trials=10, space=all_tried)
    gains = []
    for engine in (few, spent):
        found = diagnose(plan_of(engine, "gp", {}, "standardize", 0), numbers(engine))
        assert found is not None
        gains.append(found.gain)
    assert gains[0] > gains[1] >= 0.0


def test_a_sampler_has_no_model_and_gp_stands_in() -> None:
    engine = searched()
    found = diagnose(plan_of(engine, "sobol", {}, "standardize", 0), numbers(engine))
    assert found is not None and found.source == "gp"


def test_of_few_trials_or_constant_ones_nothing_is_said() -> None:
    for engine in (searched(trials=4), searched(lambda _: {"loss": 2.0, "rouge_l": 0.2})):
        assert diagnose(plan_of(engine, "gp", {}, "standardize", 0), numbers(engine)) is None
    engine = searched(lambda placement: first_layer(placement) | {"rouge_l": 0.2})
    found = diagnose(plan_of(engine, "gp", {}, "standardize", 0), numbers(engine))
    assert found is not None and found.importance.keys() == {"loss"}


def test_an_exact_objective_is_inferred_where_it_is_a_multiple_of_the_rank_and_else_left_out() -> None:
    names = (*NAMES, "trainable_params")
    engine = searched(names=names)
    engine._objectives = tuple(replace(o, exact=None) for o in engine.objectives)  # as a log alone tells
    plan = plan_of(engine, "gp", {}, "standardize", 0)
    (size,) = [o for o in plan.objectives if o.name == "trainable_params"]
    assert size.exact is not None and size.exact(Placement(((0, 4), (2, 8)))) == 1200
    found = diagnose(plan, numbers(engine))
    assert found is not None and found.importance.keys() == set(NAMES) and found.gain > 0
    first = engine._state.observations[0]
    values = {**first.values, "trainable_params": 7.0}  # as where layers differ
    engine._state.observations[0] = replace(first, values=values)
    assert [o.name for o in plan_of(engine, "gp", {}, "standardize", 0).objectives] == list(NAMES)


@pytest.mark.parametrize("factors", ["size", "layer", "num+size"])
def test_only_searched_factors_have_an_importance(factors: str) -> None:
    space = MemorySpace(4, 4, (2, 4, 8, 16, 32, 64, 96, 128), factors=factors)
    engine = searched(lambda placement: {"loss": 3.0 - 0.001 * sum(placement.as_dict().values()),
                                         "rouge_l": 0.1 + 0.01 * len(placement)}, 7, space=space)  # fmt: skip
    found = diagnose(plan_of(engine, "gp", {}, "standardize", 0), numbers(engine))
    layers = {f"layer {index}" for index in range(4)} if "layer" in factors else set()
    expected = layers | ({"n"} if "num" in factors else set()) | ({"rank"} if "size" in factors else set())
    assert found is not None and found.importance["loss"].keys() == expected
