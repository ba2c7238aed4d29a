"""The entry points of jobs: usage, exit codes, and no run in a folder that goes away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from milp_ray.config.loading import load_comparison, load_job_file, load_study
from milp_ray.errors import StudyError
from milp_ray.jobs.entry import JOBS, check_paths

ROOT = Path(__file__).parents[2]
STUDY = "name: small\nmodel: {path: m}\ndata: {path: /nowhere/users.jsonl}\nstorage: {path: PATH}\n"

COMPARISON = """\
name: small
datasets: {ours: {path: /nowhere/users.jsonl}}
models: {ours: {path: m}}
methods: [none]
storage: {path: PATH}
"""


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", ["runs", "./x/../runs", "/tmp/session/_ray_pkg_1a2b/runs"])
def test_a_run_is_not_written_where_it_is_deleted(tmp_path: Path, path: str) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(STUDY.replace("PATH", path))
    package = Path("/tmp/session/_ray_pkg_1a2b")
    with pytest.raises(StudyError, match="deleted with the job"):
        check_paths(load_study(study), package)
    check_paths(load_study(study, ["storage.path=/shared/runs"]), package)
    check_paths(load_study(study, ["storage.path=s3://bucket/runs"]), package)
    check_paths(load_study(study), Path("/home/me/project"))


@pytest.mark.parametrize("job", sorted(JOBS))
def test_every_job_has_a_script_and_a_file(job: str) -> None:
    assert (ROOT / "jobs" / f"{job}.py").is_file()
    loaded = load_job_file(ROOT / "jobs" / f"{job}.yaml")
    assert loaded.storage.path.startswith("/")
    assert all(data.path.startswith("/") for data in loaded.data_sections.values())


def test_search_and_final_have_the_same_study() -> None:
    both = [
        load_study(ROOT / "jobs" / f"{job}.yaml").model_dump(exclude={"ray"}) for job in ("search", "final")
    ]
    assert both[0] == both[1]


def test_a_comparisons_folder_is_no_jobs_either() -> None:
    comparison = load_comparison(ROOT / "jobs" / "compare.yaml", ["storage.path=results"])
    with pytest.raises(StudyError, match="deleted with the job"):
        check_paths(comparison, Path("/tmp/session/_ray_pkg_1a2b"))


@pytest.mark.parametrize("job", sorted(JOBS))
def test_exit_codes_of_wrong_use(job: str, tmp_path: Path) -> None:
    script = str(ROOT / "jobs" / f"{job}.py")
    assert run(script, cwd=tmp_path).returncode == 2
    assert "usage" in run("-m", "milp_ray.jobs", cwd=tmp_path).stderr
    study = tmp_path / "study.yaml"
    study.write_text("name: Not A Name\nmodle: {path: m}\n")
    wrong = run(script, "study.yaml", "trial.epochs=0", cwd=tmp_path)
    assert wrong.returncode == 2 and "problems" in wrong.stderr, wrong.stderr
    assert "Traceback" not in wrong.stderr
    if job != "search":
        return  # what follows is the same for all, and takes seconds
    named = run(script, "study.yaml", "data.users=[jane]", cwd=tmp_path)
    assert named.returncode == 2 and "command line" in named.stderr and "jane" not in named.stderr
    study.write_text(STUDY.replace("PATH", "runs"))
    missing = run(script, "study.yaml", cwd=tmp_path)
    assert missing.returncode == 2 and "Traceback" not in missing.stderr, missing.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "local"])
@pytest.mark.parametrize(
    ("command", "text", "override"),
    [
        ("search", STUDY, "data.users=[jane]"),
        ("compare", COMPARISON, "datasets.ours.users=[jane]"),
        ("compare", COMPARISON, "datasets={ours: {path: /nowhere/users.jsonl, users: [jane]}}"),
    ],
)
def test_ids_stay_out_of_the_command_line_of_a_driver_on_a_cluster(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    address: str,
    command: str,
    text: str,
    override: str,
) -> None:
    """Ray lists a driver's command line with its jobs."""
    from milp_ray.cli import app

    (tmp_path / "study.yaml").write_text(text.replace("PATH", str(tmp_path / "runs")))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SystemExit) as ended:
        app([command, str(tmp_path / "study.yaml"), override])
    said = capfd.readouterr().err
    assert ended.value.code == 2 and "jane" not in said
    assert ("command line: 1 problem" in said) is (address != "local")
