"""The model check asks some searches within its time, and says what came of it, and its worth."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import plotly.graph_objects as go
import pytest

from milp_ray.report.html import model_check
from milp_ray.report.html.command import report
from milp_ray.report.html.model_check import NOT_MADE, ModelCheck, check_models
from milp_ray.report.html.model_section import expected_gain, importance_figure, model_section
from milp_ray.report.html.page import render
from milp_ray.report.html.run_data import read_run
from milp_ray.report.html.transfer_section import transfer_section
from milp_ray.report.html.user_table import drawn, user_table
from milp_ray.report.html.verdict import more_trials
from milp_ray.search.diagnostics import Diagnosis, LeftOut
from milp_ray.study.run_folder import RunFolder
from tests.report.runs import aliases, population_of
from tests.report.test_html import Page
from tests.report.test_html_live import begun, search


def left_out(name: str = "loss", away: float = 0.5, count: int = 12) -> LeftOut:
    """Predictions that are off by so many of their own deviations, in the right order."""
    trials = tuple(range(count))
    measured = tuple(float(trial) for trial in trials)
    return LeftOut(name, trials, measured, tuple(y - away for y in measured), (1.0,) * count)


def diagnosis(gain: float = 0.05, away: float = 0.5, **changes: object) -> Diagnosis:
    importance = {"loss": {"layer 0": 0.9, "layer 1": 0.05, "n": 0.1}}
    found = Diagnosis("saas", (left_out(away=away), left_out("rouge_l", away)), importance, gain, 0.5)
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def checked(folder: RunFolder, **settings: object) -> ModelCheck:
    run = read_run(folder)
    return check_models(folder, run, drawn(user_table(run)), **settings)  # type: ignore[arg-type]


def test_the_drawn_searches_are_fitted_and_their_answers_are_in_the_page(folder: RunFolder) -> None:
    check = checked(folder)
    assert check.found.keys() == set(aliases(3)) and check.wanted == 3 and not check.left_out
    run = read_run(folder)
    page = Page(render(run, check))
    assert "gp was fitted anew to 3 of the drawn searches" in page.text  # the study's is a sampler
    assert "24 in 3 searches" in page.text and "worth no more than its predictions" in page.text
    titles = re.findall(r"Importance by gp's posterior mean", page.text)
    assert len(titles) == 3 and "Importance of the factors, 3 searches" in page.text
    for figure in page.figures.values():
        go.Figure(figure)
    assert {found.get("id") for _, found in page.elements} >= {"model"}


def test_logs_and_tables_are_left_as_they_are(folder: RunFolder) -> None:
    before = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    checked(folder)
    assert {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()} == before


def test_no_search_is_begun_after_the_time_is_over(folder: RunFolder) -> None:
    clock = iter([0.0, 0.0, 5.0, 5.0])
    check = checked(folder, seconds=5.0, clock=lambda: next(clock))
    assert len(check.found) == 1 and check.seconds == 5.0
    assert "1 of the drawn searches (of 3: " in model_section(check).words[0]
    none = checked(folder, seconds=0.0)
    assert not none.found and "none of the drawn searches" in none.left_out


def test_of_many_users_some_are_fitted_from_the_best_to_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = begun(tmp_path, 30)
    for alias in aliases(30):
        search(many, alias, 6)
    asked: list[str] = []
    monkeypatch.setattr(model_check, "_diagnosis", lambda _, alias: asked.append(alias))
    run = read_run(many)
    shown = drawn(user_table(run))
    check = checked(many)
    assert len(asked) == check.wanted == 8 and asked[0] == shown[0] and asked[-1] == shown[-1]


def test_a_damaged_log_or_few_trials_end_no_report(folder: RunFolder, tmp_path: Path) -> None:
    folder.layout.events(aliases(3)[0]).write_text("no event\n")
    assert checked(folder).found.keys() <= set(aliases(3)[1:])
    few = begun(tmp_path / "few")
    search(few, aliases(3)[0], 3)
    assert "5 measured trials" in checked(few).left_out


def test_without_a_check_the_page_says_why(folder: RunFolder) -> None:
    path = report(folder.root, model_check=NOT_MADE)
    text = Page(path.read_text(encoding="utf-8")).text
    assert "it was made with --no-model-check" in text and "Leave-one-out predictions" not in text


@pytest.mark.parametrize(
    ("away", "covered", "words"),
    [
        (0.5, "100 %", "intervals are wide; predictions order placements"),
        (3.0, "0 %", "intervals are too narrow; predictions order placements"),
    ],
)
def test_calibration_is_judged(away: float, covered: str, words: str) -> None:
    check = ModelCheck({"u-1": diagnosis(away=away), "u-2": diagnosis(away=away)}, 2, 1.0)
    (loss, _) = model_section(check).rows
    assert loss[1:3] == ["24 in 2 searches", covered] and loss[-1] == words
    assert loss[3].startswith(f"{away**2:.2f}") and loss[4] == "+1.00"


def test_predictions_that_never_change_order_nothing() -> None:
    one = left_out()
    flat = dataclasses.replace(one, mean=(0.0,) * 12)
    check = ModelCheck({alias: diagnosis(left_out=(flat,)) for alias in ("u-1", "u-2")}, 2, 1.0)
    ((*_, rho, words),) = model_section(check).rows
    assert rho == "never changes" and "hardly order placements" in words


def test_of_many_layers_some_are_named_and_every_other_factor() -> None:
    factors = {**{f"layer {index}": 0.1 for index in range(32)}, "n": 0.2, "rank": 0.3}
    figure = importance_figure(diagnosis(importance={"loss": factors}), "u-1")
    go.Figure(figure.to_plain())
    ticks = figure.layout["xaxis"]["tickvals"]
    assert ticks[0] == "0" and ticks[-2:] == ["n", "rank"] and len(ticks) == 18
    assert len(figure.data[0]["x"]) == 34 and "loss most by rank (0.30)" in figure.alt


def test_the_expected_gain_is_the_median_of_what_is_known() -> None:
    found = {"u-1": diagnosis(0.1), "u-2": diagnosis(0.3), "u-3": diagnosis(float("nan"))}
    assert expected_gain(ModelCheck(found)) == (pytest.approx(0.2), 2)
    assert expected_gain(ModelCheck()) is None


@pytest.mark.parametrize(
    ("end", "gain", "answer"),
    [
        (1.0, 0.0001, "Hardly, little is left: "),
        (1.0, 0.05, "Hard to say: "),
        (2.0, 0.0001, "Hard to say: "),
        (2.0, 0.05, "Probably yes: "),
    ],
)
def test_slope_and_expectation_say_together_whether_more_trials_pay(
    folder: RunFolder, end: float, gain: float, answer: str
) -> None:
    run = read_run(folder)
    volumes = run.hypervolume.assign(hypervolume=1.0)
    volumes.loc[volumes.finished == 8, "hypervolume"] = end
    found = more_trials(dataclasses.replace(run, hypervolume=volumes), ModelCheck({"u-1": diagnosis(gain)}))
    assert found.value.startswith(answer) and found.value.count(". ") == 0
    assert f"the acquisition expects {100 * gain:.1f} %" in found.value


def learned(folder: RunFolder, alias: str) -> None:
    """Turn the last proposals of a log into ones that follow from two finished searches."""
    import json

    log = folder.layout.events(alias)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    donor = {"no_memory": [-2.6, 0.1], "told": [["1" * 12, 12, 8, -2.4, 0.2]]}
    given = {"event": "transferred", "mode": "prior", "objectives": ["loss:min", "rouge_l:max"],
             "donors": [donor, donor]}  # fmt: skip
    at = next(index for index, event in enumerate(lines) if event["event"] == "asked")
    [event for event in lines if event["event"] == "asked"][-1]["source"] = "transfer"
    lines.insert(at, given)
    log.write_text("".join(json.dumps(event) + "\n" for event in lines))


def test_transfer_is_told_with_what_it_does_not_show(tmp_path: Path) -> None:
    folder = begun(tmp_path, trials=10)
    for alias in aliases(3):
        search(folder, alias, 8)
    words = transfer_section(read_run(folder), user_table(read_run(folder))).words
    assert words == ["Transfer was off: every search learned from its own trials alone."]
    settings = folder.study.search.model_copy(update={"transfer": "prior"})
    folder.study = folder.study.model_copy(update={"search": settings})
    run = read_run(folder)
    assert "no search has had a finished one" in transfer_section(run, user_table(run)).words[0]
    for alias in aliases(3)[1:]:
        learned(folder, alias)
    run = read_run(folder)
    found = transfer_section(run, user_table(run))
    assert run.logs[aliases(3)[1]].teachers == 2 and run.logs[aliases(3)[1]].learned
    assert "That is no experiment" in found.words[0] and "search.transfer: none" in found.words[0]
    assert "ended on their user's front" in found.words[1]
    assert [row[:2] for row in found.rows] == [["with finished ones to learn from", "2"], ["without", "1"]]
    assert all("in loss" in row[2] for row in found.rows)


def test_a_population_has_nobody_to_learn_from(tmp_path: Path) -> None:
    run = read_run(population_of(tmp_path))
    assert "nobody to learn from" in transfer_section(run, user_table(run)).words[0]
