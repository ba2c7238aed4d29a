"""An objective that is the same in every trial is told, once, and not modelled while that is so."""

from __future__ import annotations

import pytest

from milp_ray.config.objectives import OBJECTIVES, instead_of
from milp_ray.search import Engine, Objective
from milp_ray.search.propose import varying
from tests.search.problems import LOSS_AND_ROUGE, measure, size, small_space

NOTE = "rouge_l is 0 in every trial: left out of the search until that changes"
EXACT = Objective("size", "min", exact=size)


def told(surrogate: str, rouge: float | None = 0.0, *more: Objective, initial: int = 6) -> Engine:
    engine = Engine(
        small_space(),
        (*LOSS_AND_ROUGE, *more),
        initial=initial,
        batch=2,
        surrogate=surrogate,
        reference={"loss": 3.0, "rouge_l": 0.0},
    )
    for proposal in engine.ask(initial):
        values = measure(proposal.placement)
        engine.tell(
            proposal.id,
            {"loss": values["loss"], "rouge_l": values["rouge_l"] if rouge is None else rouge},
        )
    return engine


@pytest.mark.parametrize("surrogate", ["gp", "random"])
def test_it_is_told_once_and_left_out(surrogate: str) -> None:
    engine = told(surrogate)
    first = engine.ask(2)
    assert engine.notes == (NOTE,) and first[0].source == surrogate
    for proposal in first:
        engine.tell(proposal.id, {"loss": 2.0 + proposal.id / 10, "rouge_l": 0.0})
    engine.ask(2)
    assert engine.notes == (NOTE,)


def test_the_search_is_that_of_the_other_objectives() -> None:
    engine = told("gp")
    alone = Engine(
        small_space(), LOSS_AND_ROUGE[:1], initial=6, batch=2, surrogate="gp", reference={"loss": 3.0}
    )
    for proposal, seen in zip(alone.ask(6), engine.observations, strict=True):
        assert proposal.placement == seen.placement
        alone.tell(proposal.id, {"loss": seen.values["loss"]})
    assert [p.placement for p in engine.ask(2)] == [p.placement for p in alone.ask(2)]


def test_it_is_searched_again_once_it_differs() -> None:
    engine = told("gp")
    (proposal, _) = engine.ask(2)
    engine.tell(proposal.id, {"loss": 2.0, "rouge_l": 0.3})
    kept, notes = varying(engine.plan(2))
    assert kept is not None and kept.objectives == LOSS_AND_ROUGE and not notes
    assert kept.maximized == engine.plan(2).maximized


@pytest.mark.parametrize("more", [(), (EXACT,)], ids=["measured only", "with an exact one"])
def test_without_any_that_differs_nothing_is_modelled(more: tuple[Objective, ...]) -> None:
    engine = Engine(small_space(), (*LOSS_AND_ROUGE, *more), initial=6, batch=2, surrogate="gp")
    for proposal in engine.ask(6):
        engine.tell(proposal.id, {"loss": 2.5, "rouge_l": 0.0})
    assert {proposal.source for proposal in engine.ask(2)} == {"sobol"}
    assert engine.notes == (NOTE.replace("rouge_l is 0", "loss is 2.5"), NOTE)


def test_a_few_equal_values_and_exact_objectives_are_no_constants() -> None:
    assert told("random", initial=2).ask(1) and not told("random", initial=2).notes
    engine = told("random", None, EXACT)
    engine.ask(2)
    assert not engine.notes


def test_what_to_do_is_a_study_that_can_be_searched() -> None:
    ways = instead_of(["rouge_l"], ["loss", "rouge_l"])
    assert "objectives: [loss], or [loss, trainable_params], or [loss, chrf]" in ways
    assert "chrf counts" not in instead_of(["rouge_l"], ["loss", "rouge_l", "chrf"])
    assert "objectives: [loss], or [loss, trainable_params]" in instead_of(["loss"], ["loss"])
    assert {"loss", "chrf", "trainable_params"} <= OBJECTIVES.keys()
