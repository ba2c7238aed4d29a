"""Whole processes: a study killed, stopped and resumed; one that ends well is in test_finished."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.processes import titled
from tests.study.conftest import Start, call

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
        for found in titled(title, process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                found.kill()
                return True
        return False

    wait_for(killed, process)


def test_a_killed_driver_loses_and_repeats_nothing(study_file: Path, start: Start) -> None:
    run = study_file.parent / "runs" / "small"
    process = start(
        "search", str(study_file), "search.trials=7", "ray.max_concurrent=2", "final.automatic=false"
    )
    wait_for(lambda: len(told(run)) >= 5, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = told(run)
    assert len(before) < 14, "the kill came too late to mean anything"

    resumed = start("resume", str(run))
    output = resumed.communicate()[0]
    assert resumed.returncode == 0, output
    after = told(run)
    assert after[: len(before)] == before or set(before) <= set(after)
    assert sorted(after) == sorted((alias, i) for alias in events(run) for i in range(7))
    asked = [e for found in events(run).values() for e in found if e["event"] == "asked"]
    assert sum(len(e["proposals"]) for e in asked) == 14  # type: ignore[arg-type]
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


@pytest.mark.nightly
def test_a_killed_worker_of_either_stage_costs_a_retry_and_nothing_else(
    study_file: Path, start: Start
) -> None:
    run = study_file.parent / "runs" / "small"
    words = [
        "search.trials=4",
        "trial.epochs=15",
        "search.surrogate=random",
        "ray.max_concurrent=2",
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
