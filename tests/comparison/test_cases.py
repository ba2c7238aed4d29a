"""Pages that show what was answered: whom they show, and that texts stay as they are."""

import json
from pathlib import Path

import pytest
import yaml

from milp_ray.comparison.answers import write_private
from milp_ray.comparison.cases import case_page
from milp_ray.comparison.cells import Cell, CellCost, CellRecord, UserResult
from milp_ray.comparison.command import _predictions
from milp_ray.comparison.plan import ConditionPlan
from milp_ray.tune.comparison.worker import Answer
from tests.comparison.test_plan import divided, planned, write_comparison
from tests.data import test_reader_lamp as lamp


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, shallow_model: Path) -> ConditionPlan:
    folder = tmp_path_factory.mktemp("comparison")
    return planned(write_comparison(folder, shallow_model, ["none", "milp"]))


def answers(plan: ConditionPlan, text: str = "so it is") -> dict[str, dict[str, Answer]]:
    return {
        method: {
            alias: Answer(method, alias, responses=(f"{text}, says {method}",) * len(user.test))
            for alias, user in plan.users.items()
        }
        for method in ("none", "milp")
    }


def records(plan: ConditionPlan, gains: list[float]) -> list[CellRecord]:
    """The bare model has a loss of 3 for everybody."""
    losses = {"none": [3.0] * len(gains), "milp": [3.0 - gain for gain in gains]}
    return [
        CellRecord(
            Cell(plan.condition, method),
            "digest",
            {alias: UserResult(1, {"loss": loss}) for alias, loss in zip(plan.users, found, strict=True)},
            CellCost(),
        )
        for method, found in losses.items()
    ]


def test_users_are_spread_from_the_best_to_the_worst(plan: ConditionPlan) -> None:
    first, second, third = plan.users
    page = case_page(plan, records(plan, [0.1, -0.2, 0.3]), answers(plan), 2)
    heads = [line for line in page.splitlines() if line.startswith("## ")]
    assert heads == [f"## {third}: +0.300 nats by `milp`", f"## {second}: -0.200 nats by `milp`"]
    assert f"## {first}: +0.100" in case_page(plan, records(plan, [0.1, -0.2, 0.3]), answers(plan), 1)


def test_a_page_has_what_was_asked_and_all_answers(plan: ConditionPlan) -> None:
    page = case_page(plan, records(plan, [0.1, 0.2, 0.3]), answers(plan), 3)
    for user in plan.users.values():
        assert user.test[0].query in page and user.test[0].response in page
    assert page.count("so it is, says milp") == page.count("so it is, says none") == 3


def test_a_text_cannot_end_its_own_block(plan: ConditionPlan) -> None:
    page = case_page(plan, records(plan, [0.1, 0.2, 0.3]), answers(plan, "```\n# a head\n````"), 1)
    lines = page.splitlines()
    place = lines.index("# a head")
    assert lines[place - 2] == "`````text" and "`````" in lines[place + 2]


def test_without_gains_users_come_by_alias(plan: ConditionPlan) -> None:
    page = case_page(plan, [], answers(plan), 2)
    assert "by alias" in page and f"## {next(iter(plan.users))}\n" in page


def test_a_page_is_its_owners_alone(tmp_path: Path) -> None:
    write_private(tmp_path / "cases" / "one.md", "a text")
    assert (tmp_path / "cases" / "one.md").stat().st_mode & 0o077 == 0


def test_predictions_of_lamp_have_its_own_form(tmp_path: Path, shallow_model: Path) -> None:
    profile = [
        {"title": f"Day {day}", "text": f"It rained on day {day} and then no more."} for day in range(4)
    ]
    asked = [lamp.question(str(number), profile) for number in range(10)]
    outputs = {str(number): f"Weather {number}" for number in range(10)}
    data = lamp.write(tmp_path, asked, lamp.golds("LaMP_4", outputs))
    path = divided(tmp_path, shallow_model, ["none"])
    comparison = yaml.safe_load(path.read_text(encoding="utf-8"))
    comparison["datasets"]["canary"] |= {"path": str(data), "format": "lamp"}
    path.write_text(yaml.safe_dump(comparison), encoding="utf-8")
    plan = planned(path)
    said = {
        alias: Answer("none", alias, responses=tuple(f"said of {one.query}" for one in user.test))
        for alias, user in plan.users.items()
    }
    lost = Answer("none", next(iter(said)), reason="out of memory")
    ids = [one.source_id for user in plan.users.values() for one in user.test]
    kept = lamp.golds("LaMP_4", {key: text for key, text in outputs.items() if key in ids})
    given = _predictions(plan, said)
    assert given is not None
    pairs = lamp.checked(json.dumps(kept), given)
    assert sorted(pairs) == sorted((f"said of question {key}", f"Weather {key}") for key in ids)
    given = _predictions(plan, said | {lost.alias: lost})
    assert given is not None and len(json.loads(given)["golds"]) == len(ids) - 1


def test_data_without_an_evaluation_of_its_own_has_no_predictions(plan: ConditionPlan) -> None:
    assert _predictions(plan, answers(plan)["milp"]) is None
