"""Jobs on a real head with a token: submitted, followed, watched, stopped, resumed, refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from milp_ray.tune.search.prometheus import GAUGES, HISTOGRAMS, PREFIX
from tests.cluster.promql import metric_names
from tests.comparison.test_plan import write_comparison
from tests.jobs.conftest import ROOT, Head
from tests.study.conftest import CANARY

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path, study_file: Path) -> Path:
    """A working folder as a checkout has it: the jobs, and a study beside them."""
    folder = tmp_path / "project"
    (folder / "jobs").mkdir(parents=True)
    for name in ("search.py", "final.py", "compare.py"):
        shutil.copy(ROOT / "jobs" / name, folder / "jobs" / name)
    shutil.copy(study_file, folder / "jobs" / "study.yaml")
    shutil.copytree(ROOT / "milp_ray", folder / "milp_ray", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".rayignore", folder / ".rayignore")
    return folder


def submitted(head: Head, project: Path, *words: str) -> tuple[int, str]:
    process = head.milp_ray("submit", "jobs/search.py", "jobs/study.yaml", *words, cwd=project)
    output = process.communicate(timeout=240)[0]
    return process.returncode, output


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 200) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.3)
    return found


def actors(head: Head) -> list[dict[str, Any]]:
    found = head.get("/api/v0/actors?detail=1")["data"]["result"]["result"]
    return list(found)


def exported(head: Head) -> set[str]:
    try:
        text = head.scrape()
    except urllib.error.URLError:  # the node's agent is still starting
        return set()
    return set(re.findall(rf"^(ray_{PREFIX}\w+)", text, re.MULTILINE))


def test_a_job_from_submission_to_the_end_as_the_dashboard_sees_it(head: Head, project: Path) -> None:
    process = head.milp_ray(
        "submit", "jobs/search.py", "jobs/study.yaml", "search.trials=8", "trial.epochs=12", cwd=project
    )
    wanted = {f"ray_{PREFIX}{name}" for name in GAUGES} | {f"ray_{PREFIX}{n}_count" for n in HISTOGRAMS}
    dashboard = json.loads((ROOT / "cluster/monitoring/dashboard.json").read_text())
    wanted |= {name for name in metric_names(dashboard) if name.startswith(f"ray_{PREFIX}")}
    seen: set[str] = set()
    names: set[str] = set()

    def watched() -> bool:
        seen.update(exported(head))
        names.update(str(a["repr_name"]) for a in actors(head) if a["class_name"] == "MemoryTrial")
        return wanted <= seen and bool(names - {""})

    wait_for(watched, process)
    (job,) = head.get("/api/jobs/")
    assert job["status"] == "RUNNING" and job["submission_id"].startswith("milp-small-")
    assert (
        job["metadata"]["job_name"] == job["metadata"]["study"] == "small" and job["metadata"]["users"] == "2"
    )
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    assert "own memory" in output and "SUCCEEDED, exit code 0" in output and CANARY not in output
    assert names - {""} == {"MemoryTrial(small)"}
    report = re.search(r"^report: (\S+report\.html)$", output, re.MULTILINE)
    assert report is not None, output
    page = Path(report[1]).read_text(encoding="utf-8")
    assert "was fitted anew" in page and "Timeline by worker" in page and CANARY not in page

    (run,) = head.get("/api/train/v2/runs/v1")["train_runs"]
    assert run["name"] == "small-final" and run["status"] == "FINISHED"
    logs = head.folder / "ray" / "r" / "session_latest" / "logs"
    lines = "".join(path.read_text(errors="replace") for path in logs.rglob("worker-*.out"))
    assert re.search(r"u-\w{13}-t0003-[0-9a-f]{6} begins: layers and ranks \S", lines)
    assert re.search(r"u-\w{13}-t0003-[0-9a-f]{6} done in [0-9.]+ s: loss [0-9.]+", lines)
    assert re.search(r"u-\w{13}-train done in", lines)
    held = [path for path in logs.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert not held, "user text in Ray's logs"

    again, output = submitted(head, project, "search.trials=8", "trial.epochs=12")
    assert again == 0 and "is done already" in output
    listed = head.milp_ray("status")
    text = listed.communicate(timeout=60)[0]
    assert listed.returncode == 0 and job["submission_id"] in text and "SUCCEEDED" in text


@pytest.mark.nightly
def test_a_stopped_job_is_no_success_and_goes_on_when_submitted_again(head: Head, project: Path) -> None:
    few = ("search.trials=6", "search.initial=6", "search.surrogate=random", "trial.epochs=40")
    words = ("name=stopped", *few, "final.automatic=false")
    process = head.milp_ray("submit", "jobs/search.py", "jobs/study.yaml", *words, cwd=project)
    study = yaml.safe_load((project / "jobs/study.yaml").read_text())
    run = Path(study["storage"]["path"]) / "stopped"

    def told() -> list[str]:
        logs = sorted((run / "events").glob("*.jsonl")) if run.exists() else []
        return [line for log in logs for line in log.read_text().splitlines() if '"told"' in line]

    wait_for(lambda: len(told()) >= 2, process)
    job = next(j["submission_id"] for j in head.get("/api/jobs/") if "stopped" in j["submission_id"])

    twin = head.milp_ray("submit", "jobs/search.py", "jobs/study.yaml", *words, "--no-wait", cwd=project)
    output = twin.communicate(timeout=60)[0]
    assert twin.returncode == 0 and f"under way as {job}" in output

    stop = head.milp_ray("stop", job)
    assert "STOPPED" in stop.communicate(timeout=90)[0] and stop.returncode == 0
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    before = told()
    assert len(before) < 12
    one = head.milp_ray("status", job)
    assert "STOPPED" in one.communicate(timeout=60)[0] and one.returncode == 130

    code, output = submitted(head, project, *words)
    assert code == 0, output
    assert f"{job.removesuffix('1')}2" in output
    after = told()
    assert len(after) == 12 and set(before) <= set(after)

    final = head.milp_ray("submit", "jobs/final.py", "jobs/study.yaml", *words, cwd=project)
    output = final.communicate(timeout=240)[0]
    assert final.returncode == 0 and "another user's" in output, output


@pytest.mark.nightly
def test_exit_codes_of_wrong_studies_and_broken_jobs(head: Head, project: Path) -> None:
    code, output = submitted(head, project, "trial.epochs=0", "serach.trials=3")
    assert code == 2 and "2 problems" in output
    # What only shows on the cluster: the data is not there.
    code, output = submitted(head, project, "name=lost", "data.path=/nowhere/users.jsonl")
    assert code == 2 and "FAILED, exit code 2" in output and "/nowhere/users.jsonl" in output
    (project / "jobs" / "broken.py").write_text("raise RuntimeError('a bug')\n")
    broken = head.milp_ray("submit", "jobs/broken.py", "jobs/study.yaml", cwd=project)
    output = broken.communicate(timeout=120)[0]
    assert broken.returncode == 1 and "a bug" in output
    simulated = (
        "name=short",
        "simulation.seconds=0.01",
        "simulation.failures=0.5",
        "search.surrogate=random",
    )
    code, output = submitted(head, project, *simulated)
    assert code == 3 and "FAILED, exit code 3" in output


@pytest.mark.nightly
def test_rays_own_command_works_as_typed(head: Head, project: Path) -> None:
    ray = shutil.which("ray", path=head.environment["PATH"])
    assert ray
    words = [ray, "job", "submit", "--working-dir", ".", "--", "python", "jobs/search.py", "jobs/study.yaml"]
    simulated = ("name=typed", "simulation.seconds=0.01", "search.surrogate=random")
    (project / "large.bin").write_bytes(b"x" * (300 << 20))  # above what Ray would take: it must not travel
    process = head.start(*words, *simulated, cwd=project)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "succeeded" in output, output
    wrong = head.start(*words, "storage.path=runs", *simulated, cwd=project)
    output = wrong.communicate(timeout=120)[0]
    assert wrong.returncode == 1 and "deleted with the job" in output, output
    last = max(head.get("/api/jobs/"), key=lambda job: job["start_time"])
    assert last["driver_exit_code"] == 2


@pytest.mark.nightly
def test_a_comparison_as_a_job(head: Head, project: Path, shallow_model: Path, tmp_path: Path) -> None:
    path = write_comparison(tmp_path, shallow_model, ["none", "milp"])
    shutil.copy(path, project / "jobs" / "comparison.yaml")
    words = ("submit", "jobs/compare.py", "jobs/comparison.yaml")
    job = head.milp_ray(*words, cwd=project)
    output = job.communicate(timeout=300)[0]
    assert job.returncode == 0 and "2 of 2 cells are finished" in output, output
    assert "SUCCEEDED" in output
    again = head.milp_ray(*words, "--again", cwd=project)
    output = again.communicate(timeout=120)[0]
    assert again.returncode == 0 and "2 cells, 2 of them finished before" in output, output
    nowhere = head.milp_ray(*words, "name=lost", "datasets.canary.path=/nowhere/users.jsonl", cwd=project)
    output = nowhere.communicate(timeout=120)[0]
    assert nowhere.returncode == 2 and "/nowhere/users.jsonl" in output, output


def test_a_wrong_token_is_refused(head: Head, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    process = head.milp_ray("status", "--token-file", str(tmp_path / "token"))
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "refuses the token" in output and "Traceback" not in output
    none = head.milp_ray("status", environment={"RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_MODE": "disabled"})
    output = none.communicate(timeout=60)[0]
    assert none.returncode == 1 and "refuses the token" in output
