"""Points that a study names are measured before all others."""

from __future__ import annotations

from pathlib import Path

import pytest

from milp_ray.config.search import PointToEvaluate, SearchSettings
from milp_ray.errors import SpaceError, StudyError
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.space import MemorySpace, points_of
from milp_ray.search import Engine
from tests.search.problems import LOSS_AND_ROUGE, REFERENCE, TINY_SAAS, measure

SPACE = MemorySpace(num_layers=4, max_loras=6, ranks=(8, 16))
PLAIN, HALF = points_of([PointToEvaluate(), PointToEvaluate(num=2, size=8, layers=(1, 3))], SPACE)


def engine(log: Path | None = None, **changes: object) -> Engine:
    settings: dict[str, object] = {"initial": 4, "surrogate": "random", "points": (PLAIN, HALF), **changes}
    return Engine(SPACE, LOSS_AND_ROUGE, log=log, **settings)  # type: ignore[arg-type]


def test_a_point_leaves_out_what_the_defaults_say() -> None:
    assert SPACE.placement(PLAIN).key == "0:16,1:16,2:16,3:16"
    assert SPACE.placement(HALF).key == "1:8,3:8"
    defaults = MemorySpace(4, 6, (8, 16), "size", default_num=3, default_rank=16, default_layers=(0, 2))
    assert defaults.placement(defaults.point(rank=8)).key == "0:16,2:8"


def test_points_come_first_and_count_among_the_initial_ones() -> None:
    made = engine()
    first = made.ask(3)
    assert [proposal.config for proposal in first[:2]] == [PLAIN, HALF]
    assert [proposal.source for proposal in first] == ["given", "given", "initial"]
    assert [proposal.source for proposal in made.ask(2)] == ["initial", "random"]


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_a_search_that_goes_on_proposes_what_it_would_have(tmp_path: Path, stop_after: int) -> None:
    whole, log = engine(), tmp_path / "log.jsonl"
    expected = [whole.ask(1)[0].config for _ in range(4)]
    found = [proposal.config for proposal in (engine(log).ask(stop_after) if stop_after else [])]
    again = engine(log)
    found += [again.ask(1)[0].config for _ in range(4 - stop_after)]
    assert found == expected


def test_a_point_named_twice_is_measured_once() -> None:
    made = engine(points=(PLAIN, PLAIN, HALF))
    assert [proposal.source for proposal in made.ask(4)] == ["given", "given", "initial", "initial"]


def test_a_model_learns_from_points_as_from_any_trial() -> None:
    made = engine(surrogate="saas", surrogate_options=TINY_SAAS, initial=2, reference=REFERENCE)
    for proposal in made.ask(2):
        made.tell(proposal.id, measure(proposal.placement))
    assert [proposal.source for proposal in made.ask(1)] == ["saas"]


def test_all_points_that_are_not_of_the_space_are_told() -> None:
    wrong = [
        PointToEvaluate(size=12),
        PointToEvaluate(),
        PointToEvaluate(num=7),
        PointToEvaluate(layers=(4,)),
    ]
    with pytest.raises(StudyError) as failure:
        points_of(wrong, SPACE)
    places = [problem.where for problem in failure.value.problems]
    assert places == [f"search.points_to_evaluate[{place}]" for place in (0, 2, 3)]
    assert failure.value.problems[0].expected == "8, 16"
    with pytest.raises(SpaceError):
        engine(points=(MemoryConfig((True,), 1, 8),))


def test_more_points_than_initial_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="points_to_evaluate has 3"):
        SearchSettings(initial=2, trials=8, points_to_evaluate=({}, {"num": 2}, {"num": 3}))


def test_points_read_back_from_a_study_file() -> None:
    points = ({}, {"num": 6, "size": 8, "layers": [0, 2, 4]})
    made = SearchSettings.model_validate({"points_to_evaluate": list(points)})
    assert made.points_to_evaluate[1].layers == (0, 2, 4)
    assert SearchSettings.model_validate_json(made.model_dump_json()) == made
