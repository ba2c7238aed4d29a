"""Resume is replay: after a kill at any event, a search goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from milp_ray.search import Engine
from milp_ray.search.core.local_search import LocalSearch
from tests.search.problems import LOSS_AND_ROUGE, REFERENCE, TINY_SAAS, measure, run, small_space

TRIALS = 9


def resume(log: Path, surrogate: str) -> Engine:
    return Engine(
        small_space(),
        LOSS_AND_ROUGE,
        initial=4,
        batch=2,
        surrogate=surrogate,
        surrogate_options=TINY_SAAS if surrogate == "saas" else {},
        search=LocalSearch(draws=16, climbers=2, rounds=2),
        seed=11,
        log=log,
    )


def drive(engine: Engine) -> None:
    """A driver that can begin anywhere: run what is pending, one at a time, then ask."""
    while True:
        if engine.reference is None and len(engine.observations) >= 2:
            engine.set_reference(REFERENCE)
        for proposal in engine.pending:
            if proposal.id % 4 == 3:
                engine.fail(proposal.id, "out of memory")
            else:
                engine.tell(proposal.id, measure(proposal.placement))
            if engine.reference is None and len(engine.observations) >= 2:
                engine.set_reference(REFERENCE)
        left = TRIALS - len(engine.proposals)
        if left <= 0:
            return
        engine.ask(min(2, left))


@pytest.mark.parametrize("surrogate", ["random", "gp", "saas"])
def test_killed_at_every_event_the_log_comes_out_the_same(tmp_path: Path, surrogate: str) -> None:
    whole = tmp_path / "whole.jsonl"
    drive(resume(whole, surrogate))
    lines = whole.read_bytes().splitlines(keepends=True)
    assert len(lines) > 2 * TRIALS // 2
    # A proposal with saas takes seconds in all: there every third boundary is enough.
    for count in range(0, len(lines) + 1, 3 if surrogate == "saas" else 1):
        log = tmp_path / f"{count}.jsonl"
        log.write_bytes(b"".join(lines[:count]) + b'{"event":"to')
        drive(resume(log, surrogate))
        assert log.read_bytes() == whole.read_bytes(), f"killed after event {count}"


def test_killed_between_the_design_and_the_model_the_rest_of_the_batch_is_the_same(tmp_path: Path) -> None:
    log = tmp_path / "u.jsonl"
    engine = resume(log, "gp")
    for proposal in engine.ask(3):
        engine.tell(proposal.id, measure(proposal.placement))
    asked = engine.ask(3)  # the last of the design, then two of the model: two events
    lines = log.read_bytes().splitlines(keepends=True)
    assert [p.source for p in asked] == ["initial", "gp", "gp"]
    log.write_bytes(b"".join(lines[:-1]))
    resumed = resume(log, "gp")
    assert list(resumed.pending) == asked[:1]
    assert resumed.ask(2) == asked[1:]


def test_another_seed_searches_elsewhere() -> None:
    one = Engine(small_space(), LOSS_AND_ROUGE, initial=4, surrogate="random", seed=1)
    two = Engine(small_space(), LOSS_AND_ROUGE, initial=4, surrogate="random", seed=2)
    assert [p.placement for p in one.ask(8)] != [p.placement for p in two.ask(8)]


@pytest.mark.parametrize("surrogate", ["random", "gp"])
@pytest.mark.parametrize("first", [3, 5])
def test_a_search_that_is_given_more_trials_is_one_that_had_them(
    tmp_path: Path, surrogate: str, first: int
) -> None:
    """Proposals one by one; of several from one fit, those after the break are a later fit's."""

    def searched(log: Path | None, trials: int) -> Engine:
        engine = Engine(
            small_space(), LOSS_AND_ROUGE, initial=4, surrogate=surrogate, seed=5, trials=trials, log=log
        )
        run(engine, trials)
        assert "limit" in engine.finished
        return engine

    log = tmp_path / "u.jsonl"
    few = searched(log, first)
    more, whole = searched(log, 8), searched(None, 8)
    assert more.proposals[:first] == few.proposals and more.observations == whole.observations
