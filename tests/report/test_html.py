"""The report is one file that says what the tables say, whatever is in them and however many."""

from __future__ import annotations

import json
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

from milp_ray.errors import RunFolderError
from milp_ray.ids import POPULATION
from milp_ray.report.html.command import report
from milp_ray.report.html.page import embedded, render
from milp_ray.report.html.run_data import read_run
from milp_ray.report.html.user_table import drawn, is_complete, user_table
from milp_ray.report.html.verdict import last_quarter, verdict
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.tables import read_table, write_table
from tests.report.runs import (
    KEY,
    aliases,
    population_of,
    run_of,
    scores_of,
    study_of,
    trials_of,
    write_run,
)

MIB = 1 << 20


class Page(HTMLParser):
    """What a browser makes of a report: elements, text outside scripts, and what scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        if tag in ("script", "style"):
            self._script = str(found.get("id", tag))
            self.scripts[self._script] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text += data
        else:
            self.scripts[self._script] += data

    def json(self, name: str) -> Any:
        return json.loads(self.scripts[name])

    @property
    def figures(self) -> dict[str, Any]:
        names = [name for name in self.scripts if name.startswith("figures")]
        return {key: figure for name in names for key, figure in self.json(name).items()}

    @property
    def rows(self) -> dict[str, list[Any]]:
        return {row[0]: row for row in self.json("all-rows")["rows"]}


def page_of(folder: RunFolder) -> Page:
    return Page(render(read_run(folder)))


def facts(folder: RunFolder) -> dict[str, str]:
    run = read_run(folder)
    return {fact.label: fact.value for fact in verdict(run, user_table(run))}


def test_a_finished_run_is_one_file_without_a_request(tmp_path: Path) -> None:
    folder = run_of(tmp_path)
    path = report(folder.root)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == folder.root / "report.html"
    assert not [found for _, found in page.elements if {"src", "srcset", "data", "poster"} & found.keys()]
    links = [str(found["href"]) for _, found in page.elements if "href" in found]
    assert links and all(link.startswith("#") for link in links)
    assert "@import" not in page.scripts["style"] and "url(" not in page.scripts["style"]
    assert any("default-src 'none'" in str(found.get("content")) for _, found in page.elements)
    assert text.count("plotly.js v") == 1 and "Plotly" in page.scripts["plotly"]


def test_every_section_is_there_and_every_figure_has_words_and_data(tmp_path: Path) -> None:
    page = page_of(run_of(tmp_path))
    ids = {found.get("id") for _, found in page.elements}
    assert {"verdict", "users", "population", "health", "origin", "find"} <= ids
    plots = [found for _, found in page.elements if found.get("class") == "plot"]
    assert {plot["id"] for plot in plots} == page.figures.keys() and len(plots) >= 3 * 4 + 4
    assert all(len(str(plot["aria-label"])) > 20 and plot["role"] == "img" for plot in plots)
    for figure in page.figures.values():
        go.Figure(figure)  # plotly's own validation: an unknown property or a wrong value raises
    for alias in aliases(3):
        assert alias in page.text and alias in page.rows
    assert "out of memory at # GiB" in page.text
    assert "search:" in page.text and "run format" in page.text


def test_the_verdict_says_what_the_tables_say(tmp_path: Path) -> None:
    users = aliases(6)
    folder = run_of(tmp_path, 6)
    losses = {
        alias: (2.5, 2.5 - gain, 2.45)
        for alias, gain in zip(users, (-0.1, 0.02, 0.1, 0.2, 0.3, 0.4), strict=True)
    }
    write_table(scores_of(users, losses), folder.layout.table("scores"))
    found = facts(folder)
    assert found["Users"] == "6 tested, 0 failed, of 6"
    assert (
        found["Memory beats no memory"].startswith("83.3 % [") and "5 of 6" in found["Memory beats no memory"]
    )
    assert "4 of 6" in found["Memory beats another user's"]
    assert found["Median gain over no memory"].startswith("+0.1500 nats per token [")
    # 6 users x 11 rows x 6 s
    assert found["Worker-hours of the trials"] == "0.11"
    trials = read_table(folder.layout.table("chosen"))
    assert found["Largest rank to serve"].startswith(f"{trials['rank'].max()} (vLLM: --max-lora-rank ")


def test_users_who_are_all_alike_have_no_interval(tmp_path: Path) -> None:
    assert facts(run_of(tmp_path, 6))["Memory beats no memory"] == "100.0 %: 6 of 6 users"


def test_medians_of_cost_are_those_of_trials_and_sums_of_all(tmp_path: Path) -> None:
    folder = run_of(tmp_path)
    trials = read_table(folder.layout.table("trials"))
    trials.loc[trials.trial < 6, "inject_seconds"] = 1.0
    trials.loc[trials.trial == -1, "inject_seconds"] = 9.0
    write_table(trials, folder.layout.table("trials"))
    # Of 10 trials 6 took 1 s and 4 took 3 s; with the no-memory measurement 3 x 27 s in all.
    assert "81 in all, 1.00 a trial (median)" in page_of(folder).text


def test_hours_are_of_gpus_where_trials_had_one_and_count_every_worker(tmp_path: Path) -> None:
    folder = run_of(tmp_path, ray={"workers_per_trial": 4, "parallelism": "ddp"})
    trials = read_table(folder.layout.table("trials"))
    write_table(trials.assign(gpu_memory=7.0), folder.layout.table("trials"))
    assert facts(folder)["GPU-hours of the trials"] == "0.22"


@pytest.mark.parametrize(
    ("curve", "share"),
    [([1.0] * 8, 0.0), ([*range(1, 9)], 2 / 8), ([0.0] * 6 + [1, 2, 4, 4], 0.5)],
)
def test_the_last_quarter_is_that_of_the_measured_trials(curve: list[float], share: float) -> None:
    assert last_quarter({"u": curve}) == {"u": (pytest.approx(share), len(curve) // 4)}


def test_few_trials_or_no_hypervolume_say_nothing_of_more_trials() -> None:
    assert last_quarter({"u": [1.0] * 7, "v": [0.0] * 20, "w": []}) == {}


@pytest.mark.parametrize(("end", "words"), [(1.0, "Hardly, little is left"), (2.0, "Probably yes")])
def test_more_trials_pay_where_the_hypervolume_still_grows(tmp_path: Path, end: float, words: str) -> None:
    folder = run_of(tmp_path)
    rows = [
        {"user": alias, "finished": n, "hypervolume": 1.0 if n < 9 else end}
        for alias in aliases(3)
        for n in range(1, 10)
    ]
    write_table(pd.DataFrame(rows), folder.layout.table("hypervolume"))
    assert facts(folder)["Would more trials pay?"].startswith(words)


def test_three_thousand_users_fit_and_each_can_be_found(tmp_path: Path) -> None:
    users = aliases(3_000)
    folder = RunFolder.create(study_of(tmp_path), dict.fromkeys(users, "f" * 32), KEY)
    kinds = [trials_of("x", seed) for seed in range(8)]
    trials = pd.concat(
        [kinds[index % 8].assign(user=alias) for index, alias in enumerate(users)], ignore_index=True
    )
    write_run(folder, trials, scores_of(users))
    path = report(folder.root)
    assert path.stat().st_size < 15 * MIB
    page = Page(path.read_text(encoding="utf-8"))
    assert page.rows.keys() == set(users)
    sections = [
        found["data-alias"] for tag, found in page.elements if tag == "details" and "data-alias" in found
    ]
    assert len(sections) == 24
    # What is not of the drawn users is of all of them, and thinned out.
    assert sum(len(text) for name, text in page.scripts.items() if name.startswith("figures")) < 2 * MIB


def test_of_many_users_the_best_median_worst_and_failed_are_drawn(tmp_path: Path) -> None:
    users = aliases(100)
    folder = run_of(tmp_path, 100)
    losses = {alias: (2.5, 2.5 - index / 1000, 2.5) for index, alias in enumerate(users)}
    scores = scores_of(users[5:], losses)
    write_table(scores, folder.layout.table("scores"))
    trials = read_table(folder.layout.table("trials"))
    lost = trials.user.isin(users[:5]) & (trials.state == "done")
    trials.loc[lost, ["state", "on_front"]] = ["failed", False]
    write_run(folder, trials, scores)
    table = user_table(read_run(folder))
    picked = drawn(table)
    assert len(picked) == 24 and set(users[:5]) <= set(picked)
    assert {users[-1], users[5], users[52]} <= set(picked)
    assert list(table.state[users[:5]]) == ["failed"] * 5


def test_hostile_names_and_reasons_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    hostile = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&{{ 7*7 }}'
    folder = run_of(tmp_path)
    trials = read_table(folder.layout.table("trials"))
    trials.loc[trials.state == "failed", "reason"] = hostile
    trials["user"] = trials.user.replace(aliases(3)[0], hostile)
    write_run(folder, trials, scores_of([hostile, *aliases(3)[1:]]))
    text = render(read_run(folder))
    page = Page(text)
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert sum(tag == "script" for tag, _ in page.elements) == 7  # rows, figures, 3 users, ours, plotly.js
    assert "<script>alert" not in text and "<img" not in page.scripts["all-rows"]
    assert hostile in page.rows and "alert(1)" in page.text and "alert(#)" in page.text
    shown = json.dumps(page.figures)
    assert "<img" not in shown and "<script" not in shown


def test_json_in_the_page_cannot_end_its_element() -> None:
    value = {"</script>": ["<!--<script>", "a&b", "\u2028"]}
    text = str(embedded(value))
    assert not set("<>&\u2028") & set(text) and json.loads(text) == value


def test_a_run_without_scores_says_so(tmp_path: Path) -> None:
    folder = run_of(tmp_path, tested=False)
    found, page = facts(folder), page_of(folder)
    assert found["Users"].startswith("3 searched, 0 failed")
    tested = ("Memory beats no memory", "Memory beats another user's", "Median gain over no memory")
    assert {found[name] for name in tested} == {"not tested yet"}
    assert "No test scores." in page.text and "not complete" in page.text
    assert "test gain" not in page.json("all-rows")["columns"]
    for name in ("scores", "hypervolume", "chosen"):
        folder.layout.table(name).with_suffix(".parquet").unlink()
    assert "nothing chosen yet" in page_of(folder).text


def test_a_simulated_run_is_called_one(tmp_path: Path) -> None:
    folder = run_of(tmp_path, tested=False, simulation={})
    assert "no model was trained" in facts(folder)["Median gain over no memory"]
    page = page_of(folder)
    assert "Simulated:" in page.text and "Everything is done." in page.text


def test_a_population_is_drawn_and_its_users_are_found(tmp_path: Path) -> None:
    folder = population_of(tmp_path)
    run = read_run(folder)
    table = user_table(run)
    assert is_complete(run, table) and drawn(table) == [POPULATION]
    page = page_of(folder)
    assert page.rows.keys() == {POPULATION, *aliases(8)}
    assert facts(folder)["Users"] == "8 tested, 0 failed, of 8"
    assert "Users that trials measured" in page.text and "placements on the front: " in page.text
    for figure in page.figures.values():
        go.Figure(figure)


def test_a_run_without_tables_and_trials_is_refused_with_a_remedy(tmp_path: Path) -> None:
    folder = RunFolder.create(study_of(tmp_path), "f")
    with pytest.raises(RunFolderError, match=f"milp-ray resume {re.escape(str(folder.root))}"):
        report(folder.root)
    assert not (folder.root / "report.html").exists()


@pytest.mark.parametrize(
    "factors", [("loss",), ("loss", "rouge_l", "trainable_params"), ("loss", "trainable_params")]
)
def test_any_number_of_objectives_is_drawn(tmp_path: Path, factors: tuple[str, ...]) -> None:
    page = page_of(run_of(tmp_path, objectives=factors))
    for figure in page.figures.values():
        go.Figure(figure)
    assert len(page.figures) >= 3 * 4 + 3


def test_trials_without_costs_are_counted_as_such(tmp_path: Path) -> None:
    folder = run_of(tmp_path)
    trials = read_table(folder.layout.table("trials"))
    costs = [
        "inject_seconds",
        "instruct_seconds",
        "eval_seconds",
        "train_tokens",
        "gpu_memory",
        "attempts",
        "node",
    ]
    write_table(trials.drop(columns=costs), folder.layout.table("trials"))
    assert facts(folder)["Worker-hours of the trials"].startswith("not known")
    assert "no trial has one" in page_of(folder).text


def test_health_names_what_is_constant_lost_or_used_up(tmp_path: Path) -> None:
    folder = run_of(tmp_path)
    trials = read_table(folder.layout.table("trials"))
    trials.loc[trials.state == "done", "rouge_l"] = 0.25
    trials.loc[trials.trial == 5, "attempts"] = 2
    write_run(folder, trials, scores_of(aliases(2)))
    text = page_of(folder).text
    assert "rouge_l is the same in every trial of 3 of 3 searches" in text and "objectives: [loss]" in text
    assert "3 of 30 trials failed (10.0 %)" in text
    assert "3 trials ended after their worker had been lost" in text
    assert "1 users have no test scores" in text


def test_edges_that_most_choices_lie_on_are_told(tmp_path: Path) -> None:
    folder = run_of(tmp_path, 6, memory={"ranks": (8, 16, 32), "max_loras": 12})
    trials = read_table(folder.layout.table("trials"))
    write_run(folder, trials.assign(rank=32, num_loras=5), scores_of(aliases(6)))
    text = page_of(folder).text
    assert "100 % of 6 chosen placements have the largest rank r that is searched, 32" in text
    assert "the smallest rank" not in text and "number of LoRAs n that" not in text
    write_run(folder, trials.assign(rank=16, num_loras=12), scores_of(aliases(6)))
    text = page_of(folder).text
    assert "the largest number of LoRAs n that is searched, 12" in text and "rank r that" not in text


def test_the_study_is_there_and_no_key(tmp_path: Path) -> None:
    text = render(read_run(run_of(tmp_path)))
    assert "max_loras" in text and KEY.decode() not in text


def test_no_raw_id_is_there_though_the_study_named_its_users(tmp_path: Path) -> None:
    people = tuple(f"person {number}" for number in range(3))
    folder = run_of(tmp_path, data={"path": "d", "users": people})
    text = render(read_run(folder))
    assert not [person for person in people if person in text]
    assert all(f"- {alias}" in text for alias in aliases(3))  # in the frozen study


def test_the_file_goes_where_it_is_asked_to_and_only_its_maker_reads_it(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "runs")
    before = {path: path.stat().st_mtime_ns for path in folder.root.rglob("*")}
    (tmp_path / "open").mkdir(mode=0o755)
    path = report(folder.root, tmp_path / "open" / "r.html")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.stat().st_size > MIB
    assert {path: path.stat().st_mtime_ns for path in folder.root.rglob("*")} == before
    with pytest.raises(RunFolderError, match="a file of this machine"):
        report(folder.root, "s3://bucket/r.html")


def test_in_the_run_folder_it_is_read_by_whoever_reads_the_run(tmp_path: Path) -> None:
    folder = run_of(tmp_path, storage={"path": str(tmp_path), "readable_by": "group"})
    assert stat.S_IMODE(report(folder.root).stat().st_mode) == 0o640
