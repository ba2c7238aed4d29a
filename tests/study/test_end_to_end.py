"""Whole processes: a study searched, killed, stopped, resumed, and everything it left looked into."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from ax.api.client import Client

from .conftest import CANARY, Start, call

pytestmark = pytest.mark.slow


def events(run: Path) -> dict[str, list[dict[str, object]]]:
    return {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        for path in sorted((run / "events").glob("*.jsonl"))
    }


def told(run: Path) -> list[tuple[str, object]]:
    return [(alias, e["id"]) for alias, found in events(run).items() for e in found if e["event"] == "told"]


def wait_for(
    condition: object, process: subprocess.Popen[str], seconds: float = 120, every: float = 0.05
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(every)


def kill_a_worker(process: subprocess.Popen[str], title: str) -> None:
    """Kill a worker of the run whose process title holds ``title``, as soon as there is one."""

    def killed() -> bool:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if any(title in word for word in child.cmdline()):
                    child.kill()
                    return True
            except psutil.Error:  # it ended meanwhile
                continue
        return False

    wait_for(killed, process)


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


def test_the_whole_way_through_and_no_user_text_outside(study_file: Path, start: Start) -> None:
    process = start("search", str(study_file), "ray.max_concurrent=2")
    scratch: Path = start.scratch  # type: ignore[attr-defined]
    leaked: set[Path] = set()
    sessions: set[str] = set()
    while process.poll() is None:
        leaked.update(holding(scratch, CANARY.encode()))
        sessions.update(p.name for p in scratch.glob("mr-*/r/session_*"))
        time.sleep(2)  # all files are read each time, and they grow
    output = process.communicate()[0]
    assert process.returncode == 0, output
    run = study_file.parent / "runs" / "small"

    assert sessions, "the session folder of Ray was never seen: the search for leaks looked at nothing"
    assert not leaked and CANARY not in output and not holding(run, CANARY.encode())
    assert not list(scratch.glob("mr-*")), "Ray's session folder outlived the run"

    assert sorted(told(run)) == sorted((alias, i) for alias in events(run) for i in range(6))
    assert len(events(run)) == 2
    trials = pd.read_parquet(run / "tables" / "trials.parquet")
    assert (trials.state == "done").sum() == 12 and (trials.state == "no memory").sum() == 2
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
        assert len(client.summarize()) == 6
    assert (run / "plots" / "hypervolume.png").exists()
    assert "own memory" in output and "chosen configurations" in output

    code, output = call("search", str(study_file))
    assert code == 2 and "milp-ray resume" in output
    for words in (
        ["fronts", str(run)],
        ["show", str(run), next(iter(events(run)))],
        ["show", str(run), "../../zanzibarcanary"],
    ):
        code, output = call(*words)
        assert code == 0 and "front of u-" in output and CANARY not in output, output


def test_a_killed_driver_loses_and_repeats_nothing(study_file: Path, start: Start) -> None:
    run = study_file.parent / "runs" / "small"
    process = start(
        "search", str(study_file), "search.trials=8", "ray.max_concurrent=2", "final.automatic=false"
    )
    wait_for(lambda: len(told(run)) >= 5, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = told(run)
    assert len(before) < 16, "the kill came too late to mean anything"

    resumed = start("resume", str(run))
    output = resumed.communicate()[0]
    assert resumed.returncode == 0, output
    after = told(run)
    assert after[: len(before)] == before or set(before) <= set(after)
    assert sorted(after) == sorted((alias, i) for alias in events(run) for i in range(8))
    asked = [e for found in events(run).values() for e in found if e["event"] == "asked"]
    assert sum(len(e["proposals"]) for e in asked) == 16  # type: ignore[arg-type]
    assert {path.name for path in (run / "tune").iterdir()} <= {"tune.log"}, "the killed one's scratch, too"


def test_ctrl_c_stops_in_the_middle_of_a_trial_and_it_is_too_early_for_a_final_job(
    study_file: Path, start: Start
) -> None:
    run = study_file.parent / "runs" / "small"
    process = start("search", str(study_file), "search.trials=40", "trial.epochs=60")
    wait_for(lambda: len(told(run)) >= 1, process)
    process.send_signal(signal.SIGINT)
    before = len(told(run))
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert len(told(run)) <= before + 1, "trials that were running were not left"
    assert f"milp-ray resume {run}" in output and "Traceback" not in output

    code, output = call("final", str(run))
    assert code == 2 and "no user's search is over" in output and "milp-ray resume" in output
    code, output = call("final", str(run), "final.epochs=9")
    assert code == 2 and "a run keeps its study" in output


def test_sigterm_while_ray_starts_leaves_a_run_to_resume_and_no_folders(
    study_file: Path, start: Start
) -> None:
    process = start("search", str(study_file))
    scratch: Path = start.scratch  # type: ignore[attr-defined]
    wait_for(lambda: any(scratch.glob("mr-*/token")), process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "milp-ray resume" in output and "Traceback" not in output
    assert not list(scratch.glob("mr-*"))


def test_a_killed_worker_of_either_stage_costs_a_retry_and_nothing_else(
    study_file: Path, start: Start
) -> None:
    run = study_file.parent / "runs" / "small"
    words = [
        "search.trials=4",
        "trial.epochs=20",
        "search.surrogate=random",
        "ray.max_concurrent=2",
        "final.epochs=40",
    ]
    process = start("search", str(study_file), *words)
    wait_for(lambda: len(told(run)) >= 2, process)
    kill_a_worker(process, "ray::MemoryTrial")
    kill_a_worker(process, "RayTrainWorker")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert sorted(told(run)) == sorted((alias, i) for alias in events(run) for i in range(4))
    assert len(list((run / "memories").iterdir())) == len(list((run / "scores").iterdir())) == 2


def test_weights_that_are_missing_end_the_run_with_the_reason(study_file: Path, start: Start) -> None:
    study = yaml.safe_load(study_file.read_text())
    model = study_file.parent / "model"
    shutil.copytree(study["model"]["path"], model)
    (model / "model.safetensors").unlink()
    process = start("search", str(study_file), f"model.path={model}")
    output = process.communicate()[0]
    assert process.returncode == 2, output
    assert "cannot be loaded" in output and "Traceback" not in output
    assert not told(study_file.parent / "runs" / "small")
