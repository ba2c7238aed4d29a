"""To add a factor or an objective one touches what docs/architecture.md names, and nothing else.

A copy of the package gets a newcomer's edits, in these files alone: a dropout of 0 or 0.1 as a
factor, the mean length of responses and the number of layers as objectives. By the command line it
then searches a whole simulated study. In a process of its own it trains and measures a real trial.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

import milp_ray
from tests.study.conftest import Start, user_line

pytestmark = pytest.mark.slow
ROOT = Path(milp_ray.__file__).parent
PAGE = ROOT.parent / "docs" / "architecture.md"
TRIALS, MORE = 6, 8
SETTINGS = "SETTINGS: tuple[Setting, ...] = ("
SETTING = 'Setting("drop", (0, 0.1))'
# What a newcomer does: in which file, what stands there, and what takes its place.
FACTOR = [
    ("config/factors.py", '"layer"', '"layer", "drop"'),
    (
        "memory/factors.py",
        "SETTINGS: tuple[Setting, ...] = (",
        'SETTINGS: tuple[Setting, ...] = (\n    Setting("drop", (0, 0.1)),',
    ),
    ("trial/lifecycle.py", "memory.dropout", 'placement.setting("drop", memory.dropout)'),
]
DECLARED = """
        Objective("words", "min", label="words a response"),
        Objective("layers", "min", lambda placement, architecture: len(placement), is_count=True),
"""
MEASURED = """
    "words": lambda said, given, rules: sum(len(text.split()) for text in said) / len(said),
"""
OBJECTIVE = [
    ("config/objectives.py", "for objective in (\n", f"for objective in ({DECLARED}"),
    ("evaluation/metrics.py", '] = {\n    "rouge_l"', f'] = {{{MEASURED}    "rouge_l"'),
]
REAL = """
import json, sys
from milp_ray.config.models import Study
from milp_ray.data.records import Sample, UserSplit
from milp_ray.memory import Placement
from milp_ray.model.base import load_base
from milp_ray.trial.lifecycle import Trial

study = Study.model_validate_json(sys.argv[1])
base = load_base(study.model)
asked = tuple(Sample(f"what is {n}?", f"{n} is tea", n_hist=1) for n in ("one", "two"))
user = UserSplit("u-1", ("I like plain tea.",), (), asked, (), search_cut=1, final_cut=1)
found = {}
for key in ("0:2;drop=0.1", "0:2;drop=0", "0:2"):
    with Trial(base, user, Placement.from_key(key), study, seed=0) as trial:
        values = trial.run().values
        found[key] = {"dropout": base.attached.config.lora_dropout, **values}
print(json.dumps(found))
"""


def row(what: str) -> set[str]:
    """The files that the page names to add something."""
    (line,) = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {what} |")
    ]
    return set(re.findall(r"[\w/]+\.py", line))


def edit(package: Path, name: str, old: str, new: str) -> None:
    text = (package / name).read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{name} has not one {old!r}: what would a newcomer look for?"
    (package / name).write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an edited copy of the package, which processes started here import."""
    package = tmp_path / "copy" / "milp_ray"
    shutil.copytree(ROOT, package, ignore=shutil.ignore_patterns("__pycache__"))
    for change in (*FACTOR, *OBJECTIVE):
        edit(package, *change)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.chdir(package.parent)
    return tmp_path


def settings(folder: Path, model: Path) -> dict[str, object]:
    return {
        "name": "added",
        "model": {"path": str(model)},
        "data": {"path": str(folder / "users.jsonl")},
        "memory": {"factors": "num+size+layer+drop", "ranks": [2, 4]},
        "objectives": ["loss", "words", "layers"],
        "prompts": {"max_length": 64},
        "trial": {"epochs": 1, "max_new_tokens": 4},
        "search": {"trials": TRIALS, "initial": 3, "batch": 2, "surrogate": "gp"},
        "ray": {"cpus_per_worker": 0.5, "max_concurrent": 2, "proposers": 1},
        "storage": {"path": str(folder / "runs")},
    }


def finish(process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    return output


def test_the_page_names_just_the_files_that_a_newcomer_edits() -> None:
    assert row("a search factor") == {name for name, _, _ in FACTOR}
    assert row("an objective") == {name for name, _, _ in OBJECTIVE}


@pytest.mark.nightly
def test_a_new_factor_and_new_objectives_go_through_a_whole_simulated_study(
    edited: Path, shallow_model: Path, start: Start
) -> None:
    (edited / "users.jsonl").write_text("".join(user_line(n) + "\n" for n in range(2)), encoding="utf-8")
    study = edited / "study.yaml"
    found = settings(edited, shallow_model)
    found["search"] |= {"transfer": "prior", "transfer_users": 1}  # type: ignore[operator]
    study.write_text(yaml.safe_dump(found | {"simulation": {"seconds": 0}}), encoding="utf-8")
    assert "num+size+layer+drop" in finish(start("check", str(study)))
    finish(start("search", str(study)))
    run = edited / "runs" / "added"
    before = {log.name: log.read_bytes() for log in (run / "events").glob("*.jsonl")}
    finish(start("resume", str(run), f"search.trials={MORE}"))
    assert len(before) == 2
    for name, earlier in before.items():
        log = (run / "events" / name).read_bytes()
        assert log.startswith(earlier), "what was done is done anew"
        events = [json.loads(line) for line in log.splitlines()]
        assert events[0]["space"]["settings"]["drop"] == [0.0, 0.1]
        asked = [proposal for event in events for proposal in event.get("proposals", ())]
        values = {event["id"]: event["values"] for event in events if event["event"] == "told"}
        assert len(asked) == len(values) == MORE
        for proposal in asked:
            ranks, setting = proposal["placement"].split(";")
            assert proposal["drop"] in (0.0, 0.1)
            assert setting == f"drop={proposal['drop']}".removesuffix(".0")
            assert values[proposal["id"]].keys() == {"loss", "words", "layers"}
            assert values[proposal["id"]]["layers"] == ranks.count(":")
        assert {event["source"] for event in events if event["event"] == "asked"} >= {"initial", "gp"}
    assert any(b'"transferred"' in log for log in before.values()), "nobody learned from anybody"
    trials = pd.read_parquet(run / "tables" / "trials.parquet")
    assert set(trials["drop"][trials.state == "done"]) == {0.0, 0.1}
    printed = finish(start("fronts", str(run)))
    assert "drop 0" in printed
    front = trials[trials.on_front & (trials.state == "done")]
    assert len(front) and all(f"{value:.4f}" in printed for value in front.words), "a number is cut off"


def test_a_real_trial_trains_and_measures_what_was_added(edited: Path, shallow_model: Path) -> None:
    study = settings(edited, shallow_model) | {"memory": {"dropout": 0.05, "ranks": [2, 4]}}
    words = [sys.executable, "-c", REAL, json.dumps(study)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [values["dropout"] for values in found.values()] == [0.1, 0, 0.05]
    assert all(0 <= values["words"] <= 4 for values in found.values())
