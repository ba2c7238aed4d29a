"""Simulated studies: the real driver over many trials, cohorts, failures, a kill and a resume; no
model."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.study.conftest import Start, bare_model, user_line

pytestmark = pytest.mark.slow
USERS, TRIALS, MORE = 7, 6, 7
# What a thousand users would add up: see benchmarks/population.py.
WITH_MEMORY = """
import gc, sys
from milp_ray.cli import app
try:
    app(sys.argv[1:], prog_name="milp-ray")
finally:
    from ray.tune.experiment import Trial
    from ray.util import debug
    trials = sum(isinstance(thing, Trial) for thing in gc.get_objects())
    print(f"trials in memory: {trials}, texts of trials: {sum('tune_func' in key for key in debug._logged)}")
"""


@pytest.fixture
def simulated(tmp_path: Path) -> Path:
    """Seven users in cohorts of three, on a model of which nothing but config.json is there."""
    model = bare_model(tmp_path / "model")
    lines = [user_line(number) for number in range(USERS)]
    (tmp_path / "users.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    study = {
        "name": "dry",
        "model": {"path": str(model)},
        "data": {"path": str(tmp_path / "users.jsonl")},
        "objectives": ["loss", "rouge_l", "trainable_params"],
        "search": {"trials": TRIALS, "initial": 4, "batch": 2, "surrogate": "gp", "cohort": 3},
        "ray": {"cpus_per_worker": 0.5, "max_concurrent": 2},
        "storage": {"path": str(tmp_path / "runs")},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


def events(run: Path) -> dict[str, list[dict[str, object]]]:
    return {
        log.stem: [json.loads(line) for line in log.read_text().splitlines()]
        for log in (run / "events").glob("*.jsonl")
    }


def ended(run: Path) -> list[tuple[str, object]]:
    return [
        (alias, event["id"])
        for alias, found in events(run).items()
        for event in found
        if event["event"] in ("told", "failed")
    ]


def finish(process: subprocess.Popen[str], code: int) -> str:
    output = process.communicate(timeout=240)[0]
    assert process.returncode == code, output
    return output


@pytest.mark.nightly
def test_a_simulated_study_killed_in_its_second_cohort_and_resumed_with_more_trials(
    simulated: Path, start: Start
) -> None:
    run = simulated.parent / "runs" / "dry"
    assert "the study is fine" in finish(start("check", str(simulated), "simulation.seconds=0.1"), 0)
    process = start("search", str(simulated), "simulation.seconds=0.1", "ray.proposers=1")
    deadline = time.monotonic() + 200
    while len(ended(run)) < 3 * TRIALS + 2:  # the first cohort is over
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = ended(run)
    assert len(before) < USERS * TRIALS and len(events(run)) <= 6, "the third cohort had begun already"

    output = finish(start("resume", str(run), f"search.trials={MORE}"), 0)
    after = ended(run)
    assert sorted(after) == sorted((alias, number) for alias in events(run) for number in range(MORE))
    assert len(events(run)) == USERS
    assert "no final stage" in output and "workers waited for a proposal" in output
    trials = pd.read_parquet(run / "tables" / "trials.parquet")
    assert (trials.state == "done").sum() == USERS * MORE
    assert (trials.state == "no memory").sum() == USERS
    assert trials.loss[trials.state == "no memory"].nunique() == 1
    metrics = json.loads((run / "tables" / "search_metrics.json").read_text())
    assert metrics["proposals"] >= 1 and 0 <= metrics["waiting_share"] <= 1
    assert not (run / "memories").exists() and not (run / "scores").exists()


@pytest.mark.nightly
def test_cohorts_of_which_a_share_of_the_trials_fails_learn_and_are_not_kept_in_memory(
    simulated: Path, start: Start
) -> None:
    words = ["simulation.failures=0.3", "simulation.seconds=0", "search.surrogate=random"]
    words += ["simulation.related=0.9", "search.transfer=prior", "search.transfer_users=3"]
    output = finish(start("search", str(simulated), *words, program=("-c", WITH_MEMORY)), 3)
    assert "trials in memory: 0, texts of trials: 0" in output
    run = simulated.parent / "runs" / "dry"
    trials = pd.read_parquet(run / "tables" / "trials.parquet")
    failed = trials[trials.state == "failed"]
    assert 3 < len(failed) < 25 and set(failed.reason) == {"simulated failure"}
    assert (trials.state == "done").sum() + len(failed) == USERS * TRIALS

    ended = trials[trials.state != "pending"].sort_values("started_at")
    assert (ended.ended_at >= ended.started_at).all() and (ended.started_at > 1.7e9).all()
    assert ended.worker.nunique() >= 1 and ended.worker.str.fullmatch("[0-9a-f]{8}").all()
    before = ended.groupby("worker").ended_at.shift()
    assert (before <= ended.started_at + 0.5)[before.notna()].mean() > 0.9, "one after the other"

    assert "3 users learn from 3 that are done" in output and "1 users learn from 6 that" in output
    found = events(run)
    given = {alias for alias, log in found.items() if any(event["event"] == "transferred" for event in log)}
    assert len(given) == USERS - 3, "the first cohort has nobody to learn from"
    for alias in given:
        kinds = [event["event"] for event in found[alias]]
        assert kinds.index("reference") < kinds.index("transferred") < kinds.index("asked")


def test_a_stop_is_obeyed_in_the_middle_of_a_long_simulated_trial(simulated: Path, start: Start) -> None:
    words = ["simulation.seconds=120", "trial.slice_seconds=0.5"]
    process = start("search", str(simulated), *words)
    run = simulated.parent / "runs" / "dry"
    deadline = time.monotonic() + 100
    while not any(event["event"] == "asked" for found in events(run).values() for event in found):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    assert time.monotonic() - began < 40 and not ended(run)
