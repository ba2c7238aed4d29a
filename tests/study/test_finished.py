"""A small study that is done, everything it left looked into, and the same one with two workers per
trial."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from ax.api.client import Client

from milp_ray.config.models import ModelSettings
from milp_ray.model.base import load_base, loaded
from tests.processes import listening_addresses, titles
from tests.study.conftest import CANARY, Start, call, starting, write_study
from tests.study.test_end_to_end import events, told

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRIALS = 3
QUICK = (f"search.trials={TRIALS}", f"search.initial={TRIALS}", "search.surrogate=random")


def same_key(study: Path) -> list[str]:
    """An override that gives both runs the same aliases, and so the same seeds."""
    key = study.with_name("users.key")
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(bytes(range(32)))
    return [f"data.alias_key={key}"]


def done(start: Start, *words: str) -> str:
    """What a command says that must end well."""
    process = start(*words)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def holding(root: Path, needle: bytes) -> list[Path]:
    """Files and folders below ``root`` whose name or content holds ``needle``."""
    found = []
    for folder, _, files in os.walk(root):  # skips what goes away
        for path in (Path(folder), *(Path(folder) / name for name in files)):
            try:
                if needle in str(path.relative_to(root)).encode() or (
                    path.is_file() and needle in path.read_bytes()
                ):
                    found.append(path)
            except OSError:  # sockets, and files that went away meanwhile
                continue
    return found


@dataclass(frozen=True)
class Finished:
    """A study file, and how its run ``one`` went."""

    study: Path
    output: str
    sessions: frozenset[str]
    leaked: frozenset[Path]
    shown: frozenset[str]
    heard: frozenset[str]
    left: tuple[Path, ...]

    @property
    def runs(self) -> Path:
        return self.study.parent / "runs"


@pytest.fixture(scope="module")
def finished(shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A study that is done, with one worker per trial; Ray's folders were looked through
    meanwhile."""
    study = write_study(tmp_path_factory.mktemp("finished"), shallow_model)
    leaked: set[Path] = set()
    sessions: set[str] = set()
    shown: set[str] = set()
    heard: set[str] = set()
    with starting() as start:
        process = start(
            "search",
            str(study),
            "name=one",
            *QUICK,
            *same_key(study),
            "ray.max_concurrent=2",
            "ray.rehearse=true",
        )
        scratch: Path = start.scratch  # type: ignore[attr-defined]
        while process.poll() is None:
            leaked.update(holding(scratch, CANARY.encode()))
            sessions.update(p.name for p in scratch.glob("mr-*/r/session_*"))
            shown.update(titles(process.pid))
            heard.update(listening_addresses(process.pid))
            time.sleep(1)  # all files are read each time, and they grow
        output = process.communicate()[0]
        assert process.returncode == 0, output
        left = tuple(scratch.glob("mr-*"))
    seen = (frozenset(sessions), frozenset(leaked), frozenset(shown), frozenset(heard))
    return Finished(study, output, *seen, left)


def test_no_user_text_is_outside_and_nothing_of_ray_is_left(finished: Finished) -> None:
    assert finished.sessions, "the session folder of Ray was never seen: the search for leaks saw nothing"
    assert not finished.leaked and not finished.left
    assert any("RayTrainWorker" in title for title in finished.shown)
    assert not any(CANARY in title for title in finished.shown)
    assert finished.heard and finished.heard <= {"127.0.0.1", "::1"}
    assert CANARY not in finished.output and not holding(finished.runs / "one", CANARY.encode())


def test_everything_is_there_at_the_end(finished: Finished) -> None:
    run = finished.runs / "one"
    assert len(events(run)) == 2
    assert sorted(told(run)) == sorted((alias, i) for alias in events(run) for i in range(TRIALS))
    trials = pd.read_parquet(run / "tables" / "trials.parquet")
    assert (trials.state == "done").sum() == 2 * TRIALS and (trials.state == "no memory").sum() == 2
    scores = pd.read_csv(run / "tables" / "scores.csv")
    assert sorted(scores.model) == ["base", "base", "other", "other", "own", "own"]
    assert scores.loss.notna().all()
    for alias in events(run):
        assert (run / "plots" / f"front-{alias}.png").stat().st_size > 10_000
        assert {"adapter_config.json", "adapter_model.safetensors"} <= {
            p.name for p in (run / "memories" / alias).iterdir()
        }
        on_front = set(trials[(trials.user == alias) & trials.on_front].trial)
        saved = {int(p.name[1:]) for p in (run / "adapters" / alias).iterdir()}
        assert on_front == saved, "a trial on the front has no adapter, or one that was beaten has"
        client = Client.load_from_json_file(str(run / "experiments" / f"{alias}.json"))
        assert len(client.summarize()) == TRIALS
    assert (run / "plots" / "hypervolume.png").exists()
    assert "own memory" in finished.output and "chosen configurations" in finished.output
    assert "2 of 2 have a memory" in finished.output


def test_nobody_else_can_read_a_run(finished: Finished) -> None:
    run = finished.runs / "one"
    opened = [path for path in (run, *run.rglob("*")) if path.stat().st_mode & 0o077]
    assert not opened


def test_it_is_looked_at_without_ray_and_not_begun_again(finished: Finished) -> None:
    run = finished.runs / "one"
    code, output = call("search", str(finished.study), "name=one")
    assert code == 2 and "milp-ray resume" in output
    for words in (
        ["fronts", str(run)],
        ["show", str(run), next(iter(events(run)))],
        ["show", str(run), "../../zanzibarcanary"],
    ):
        code, output = call(*words)
        assert code == 0 and "front of u-" in output and CANARY not in output, output


def test_the_memory_loads_without_milp_ray_and_gives_the_same_logits(finished: Finished) -> None:
    run = finished.runs / "one"
    memory = next((run / "memories").iterdir())
    model = json.loads((memory / "adapter_config.json").read_text())["base_model_name_or_path"]
    plain = """
import sys, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
ids = torch.arange(3, 40)[None]
with torch.no_grad():
    torch.save(model(ids).logits, sys.argv[2])
assert not any(name.startswith("milp_ray") for name in sys.modules)
"""
    out = run / "logits.pt"
    subprocess.run([sys.executable, "-c", plain, str(memory), str(out)], check=True)

    base = load_base(ModelSettings(path=model))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        bare = base.model(ids).logits
        with loaded(base, memory):
            ours = base.model(ids).logits
    theirs = torch.load(out, weights_only=True)
    assert torch.equal(ours, theirs) and not torch.allclose(ours, bare)


@pytest.mark.nightly
def test_two_workers_per_trial_find_what_one_finds(finished: Finished, start: Start) -> None:
    runs = finished.runs
    two = ["ray.workers_per_trial=2", "ray.parallelism=zero3", "ray.cpus_per_worker=0.5"]
    two += ["trial.save_adapters=false", "final.automatic=false"]
    searched = done(start, "search", str(finished.study), "name=two", *QUICK, *same_key(finished.study), *two)
    assert not (runs / "two" / "adapters").exists()
    assert f"milp-ray final {runs / 'two'}" in searched and not (runs / "two" / "memories").exists()
    assert "2 of 2 have a memory" in done(start, "final", str(runs / "two"))
    losses = [
        sorted(
            [
                loss
                for _, loss in sorted((e["id"], e["values"]["loss"]) for e in found if e["event"] == "told")
            ]  # type: ignore[index, type-var]
            for found in events(runs / name).values()
        )
        for name in ("one", "two")
    ]
    assert len(losses[0]) == 2 and len(losses[0][0]) == 3
    assert losses[1] == [pytest.approx(values, abs=1e-4) for values in losses[0]]
    scores = [
        pd.read_csv(runs / name / "tables" / "scores.csv").sort_values(["model", "loss"]).loss.tolist()
        for name in ("one", "two")
    ]
    assert len(scores[0]) == 6 and scores[1] == pytest.approx(scores[0], abs=1e-3)
    assert not list((runs / "two").rglob("checkpoints/*")) and not (runs / "two" / "train").exists()
