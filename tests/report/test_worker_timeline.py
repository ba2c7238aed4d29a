"""The timeline says who was at work when, what failed and what was lost, of few and many trials."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from milp_ray.report.html.run_data import read_run
from milp_ray.report.html.worker_timeline import (
    WorkerTimeline,
    _shares,
    at_work,
    held_hours,
    timeline_figure,
    timeline_of,
    timeline_rows,
)
from milp_ray.study.tables import read_table, write_table
from tests.report.runs import run_of, timed
from tests.report.test_html import facts, page_of


def line_of(trials: pd.DataFrame, root: Path) -> WorkerTimeline:
    folder = run_of(root)
    write_table(trials, folder.layout.table("trials"))
    line = timeline_of(read_run(folder))
    assert line is not None
    return line


@pytest.fixture
def trials(tmp_path: Path) -> pd.DataFrame:
    folder = run_of(tmp_path / "other")
    return timed(read_table(folder.layout.table("trials")))


def test_a_run_of_an_earlier_version_says_that_it_has_no_times(tmp_path: Path) -> None:
    folder = run_of(tmp_path)
    assert timeline_of(read_run(folder)) is None
    assert "there are no times in this run's log" in page_of(folder).text


def test_every_trial_has_its_bar_in_its_workers_lane(trials: pd.DataFrame, tmp_path: Path) -> None:
    line = line_of(trials, tmp_path)
    assert line.lanes == ["0a1b2c3d #1", "0a1b2c3d #2"] and not line.pauses and not line.unknown
    figure = timeline_figure(line)
    go.Figure(figure.to_plain())
    bars = {trace["name"]: trace for trace in figure.data}
    assert len(bars["measured"]["x"]) == 30 and len(bars["failed"]["x"]) == 3  # no memory counts, too
    # Stages took 6 of 10 s.
    assert set(bars["measured"]["x"]) == {6.0 / 60} and len(bars["handed out, not at work yet"]["x"]) == 33
    assert at_work(line) == pytest.approx(33 / 34) and held_hours(line) == pytest.approx(33 * 10 / 3600)
    rows = dict(timeline_rows(line))
    assert rows["stages' share of that"] == "60 %" and rows["workers"] == "2, 2 at a time at most"


def test_waiting_between_trials_is_seen(trials: pd.DataFrame, tmp_path: Path) -> None:
    slow = trials.assign(ended_at=trials.started_at + 7.0)
    assert at_work(line_of(slow, tmp_path)) == pytest.approx(33 * 7 / (2 * 167))


def test_sessions_share_lanes_and_the_night_between_them_is_cut(trials: pd.DataFrame, tmp_path: Path) -> None:
    late = trials.index >= 20
    trials.loc[late, ["started_at", "ended_at"]] += 30_000.0
    trials.loc[late, "worker"] = trials.worker[late] + "b"
    line = line_of(trials, tmp_path)
    assert len(line.lanes) == 2 and line.rows.worker.nunique() == 4
    ((_, gap),) = line.pauses
    assert gap == pytest.approx(30_000) and line.rows.ended_at.max() < 200
    assert "1 pauses are cut short" in timeline_figure(line).title
    assert "8.33 h" in dict(timeline_rows(line))["from the first trial to the last"]


def test_lost_workers_are_marked_and_counted(trials: pd.DataFrame, tmp_path: Path) -> None:
    trials.loc[4, "lost_seconds"] = 40.0
    gone = trials.index == 9
    trials.loc[gone, ["worker", "node"]] = ""
    trials.loc[gone, "lost_seconds"] = 10.0
    trials.loc[gone, ["inject_seconds", "instruct_seconds", "eval_seconds"]] = np.nan
    line = line_of(trials, tmp_path)
    assert line.lanes[-1] == "lost workers #1"
    marks = [trace for trace in timeline_figure(line).data if trace["name"] == "a worker was lost before"]
    assert len(marks[0]["x"]) == 2
    assert dict(timeline_rows(line))["lost with workers"] == "50 s, in 2 trials"
    assert held_hours(line) == pytest.approx((32 * 10 + 50) / 3600)


def test_of_many_trials_shares_of_time_are_drawn(trials: pd.DataFrame, tmp_path: Path) -> None:
    many = timed(pd.concat([trials] * 60, ignore_index=True), workers=40)
    figure = timeline_figure(line_of(many, tmp_path))
    go.Figure(figure.to_plain())
    heat, failed = figure.data
    assert np.shape(heat["z"]) == (32, 400) and "32 of 40 lanes" in figure.title
    assert len(failed["x"]) <= 300
    assert np.mean(heat["z"]) == pytest.approx(1.0, abs=0.03)


def test_a_share_is_the_part_of_a_bin_in_which_a_trial_ran() -> None:
    rows = pd.DataFrame(
        {"lane": ["a"] * 3, "started_at": [0.0, 10.0, 300.0], "ended_at": [4.0, 20.0, 400.0],
         "state": ["done"] * 3, "user": "u", "trial": 0}
    )  # fmt: skip
    (heat,) = _shares(rows, ["a"], "s", 1.0)
    (shares,) = heat["z"]
    assert shares[:4] == [1.0] * 4 and shares[4:10] == [0.0] * 6 and shares[10:20] == [1.0] * 10
    assert shares[20:300] == [0.0] * 280 and shares[300:] == [1.0] * 100


def test_hours_with_start_up_and_lost_workers_are_told_where_times_are_known(
    trials: pd.DataFrame, tmp_path: Path
) -> None:
    folder = run_of(tmp_path)
    trials.loc[4, "lost_seconds"] = 3600.0
    write_table(trials, folder.layout.table("trials"))
    label = "Worker-hours of the trials"
    assert facts(folder)[label] == "0.06 at work; 1.09 with start-up and lost workers"
    known = trials.started_at.where(trials.trial > 0)
    write_table(trials.assign(started_at=known), folder.layout.table("trials"))
    assert facts(folder)[label] == "0.06"
    assert "trials without times" in page_of(folder).text
