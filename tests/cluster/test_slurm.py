"""The sbatch files: shellcheck, Slurm's options, their logic with fake srun, scontrol and Ray."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.cluster.paths import CLUSTER, ROOT, run, tool

SLURM = CLUSTER / "slurm"
BATCHES = sorted(SLURM.glob("*.sbatch"))
# The sbatch options used here; a misspelt one is an error when the job is submitted, hours later.
OPTIONS = {
    "job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem", "exclusive", "time",
    "signal", "requeue", "output",
}  # fmt: skip


def shell_faults(path: Path) -> str:
    """What bash and shellcheck say against a script."""
    syntax = run("bash", "-n", path)
    lint = run(tool("shellcheck"), "--external-sources", f"--source-path={ROOT}", path)
    return syntax.stderr + lint.stdout + lint.stderr


def batch_faults(text: str) -> list[str]:
    """Options that sbatch does not have, or that come after the first command, where it stops."""
    head, _, rest = text.partition("\nset -euo pipefail\n")
    names = re.findall(r"(?m)^#SBATCH --([a-z-]+)", head)
    found = [f"--{name} is not known" for name in names if name not in OPTIONS]
    if "#SBATCH" in rest:
        found.append("an option after the first command")
    if "symmetric-run" in re.sub(r"(?m)^\s*#.*$", "", text) and "#SBATCH --exclusive" not in text:
        found.append("symmetric-run ends every Ray of a shared machine")
    return found


@pytest.mark.parametrize("path", sorted(SLURM.glob("*.s*")), ids=lambda path: path.name)
def test_scripts_pass_bash_and_shellcheck(path: Path) -> None:
    assert shell_faults(path) == ""


@pytest.mark.parametrize(("old", "new"), [("fi\n", "\n"), ('"$@"', "$@"), ('"$HEAD_NODE"', "$HEAD_NOD")])
def test_a_broken_script_is_seen(tmp_path: Path, old: str, new: str) -> None:
    text = (SLURM / "search-srun.sbatch").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "x.sbatch").write_text(text.replace(old, new), encoding="utf-8")
    assert shell_faults(tmp_path / "x.sbatch") != ""


@pytest.mark.parametrize("path", BATCHES, ids=lambda path: path.name)
def test_options_of_slurm(path: Path) -> None:
    assert batch_faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("--gpus-per-node", "--gpu-per-node", "not known"),
        ("#SBATCH --exclusive", "# --exclusive", "every Ray"),
        ('shift 2', "shift 2\n#SBATCH --nodes=2", "after the first"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_seen(old: str, new: str, fault: str) -> None:
    text = (SLURM / "search.sbatch").read_text(encoding="utf-8")
    assert old in text
    assert any(fault in found for found in batch_faults(text.replace(old, new)))


def test_ray_has_what_the_files_call() -> None:
    ray = tool("ray")
    help_ = run(ray, "symmetric-run", "--help", env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"})
    assert "--min-nodes" in help_.stdout, help_.stderr
    start = run(ray, "start", "--help").stdout
    words = re.findall(r"--[a-z-]+", " ".join(path.read_text(encoding="utf-8") for path in BATCHES))
    used = {
        "--head",
        "--block",
        "--node-ip-address",
        "--port",
        "--dashboard-port",
        "--ray-client-server-port",
    }
    used |= {"--dashboard-agent-listen-port", "--num-cpus", "--num-gpus", "--address"}
    assert used <= set(words), "the list here is out of date"
    assert [word for word in used if word not in start] == []


def play(folder: Path, name: str, ray: str, job: str, **changed: str) -> subprocess.Popen[str]:
    """Start a batch file on two 'machines' that are this one.

    Args:
        ray: what the stand-in for Ray does; it is called as ray is.
        job: what the stand-in for the job does.
        changed: environment variables; STUDY is the study.
    """
    folder = folder / "s"
    binaries = folder / "environment/bin"
    binaries.mkdir(parents=True)
    commands = {
        binaries / "ray": ray,
        binaries / "python": f'if [ "$1" = - ]; then exit 0; fi; echo "$*" >>{folder}/calls; {job}',
        folder / "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        folder / "scontrol": "echo localhost; echo other",
    }
    for path, text in commands.items():
        path.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "HOME": str(folder),
        "MILP_RAY_ENVIRONMENT": str(folder / "environment"),
        "MILP_RAY_SLURM": str(SLURM),
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NODELIST": "machine[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "POLL_SECONDS": "0.05",
        "RAY_AUTH_TOKEN": "of another cluster",
        "STUDY": "/shared/a study.yaml",
    } | changed
    return subprocess.Popen(
        ["bash", str(SLURM / name), "search", environment["STUDY"], "search.trials=4"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# A Ray that runs what is behind `--`; as the real one, it never says why it could not start.
SYMMETRIC = 'while [ "$1" != -- ]; do shift; done; shift; "$@"'
# Ray as steps: the head listens until it is ended, workers stay.
STEPS = (
    'for word in "$@"; do case "$word" in --port=*) port="${word#--port=}" ;; esac; done; '
    '[ -n "${port:-}" ] || exec sleep 60; '
    f'exec {tool("python")} -m http.server --bind 127.0.0.1 "$port"'
)
WAYS = [("search.sbatch", SYMMETRIC), ("search-srun.sbatch", STEPS)]


@pytest.fixture
def ended(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Batches to end after the test, with the steps that they left behind, as Slurm would."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for made in Path("/tmp").glob("mr-4242-*"):
        shutil.rmtree(made, ignore_errors=True)
    home = str(tmp_path / "s")
    for member in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if member.environ().get("HOME") == home:
                member.kill()
    for process in processes:
        process.communicate()


@pytest.mark.parametrize(("name", "ray"), WAYS, ids=lambda value: value.split(".")[0])
@pytest.mark.parametrize("code", [0, 2, 3])
def test_the_batch_ends_as_the_job_does(
    tmp_path: Path, ended: list[subprocess.Popen[str]], name: str, ray: str, code: int
) -> None:
    auth = '[ "$RAY_AUTH_MODE$RAY_AUTH_TOKEN" = token ] && [ -s "$RAY_AUTH_TOKEN_PATH" ]'
    auth += ' && [ "$(stat -c %a "${RAY_TMPDIR%/r}")" = 700 ]'
    job = f"{auth} && exit {code}; exit 77"
    process = play(tmp_path, name, ray, job)
    ended.append(process)
    process.wait(60)
    assert process.returncode == code, process.stderr and process.stderr.read()
    (call,) = (tmp_path / "s/calls").read_text(encoding="utf-8").splitlines()
    assert call == "-m milp_ray.jobs search /shared/a study.yaml ray.address=127.0.0.1:26968 search.trials=4"
    assert list((tmp_path / "s/.milp-ray").iterdir()) == [], "the token is left behind"


def test_ray_that_never_started_is_no_success(tmp_path: Path, ended: list[subprocess.Popen[str]]) -> None:
    process = play(tmp_path, "search.sbatch", "exit 0", "exit 0")
    ended.append(process)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 1 and "the job never began" in message


@pytest.mark.parametrize(("name", "ray"), WAYS, ids=lambda value: value.split(".")[0])
def test_slurms_signal_reaches_the_job_which_ends_by_itself(
    tmp_path: Path, ended: list[subprocess.Popen[str]], name: str, ray: str
) -> None:
    job = "trap 'sleep 0.3; exit 130' TERM; for _ in $(seq 600); do sleep 0.1; done"
    process = play(tmp_path, name, ray, job)
    ended.append(process)
    deadline = time.monotonic() + 30
    while not (tmp_path / "s/calls").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)  # its trap is set
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    assert process.returncode == 130


def test_a_missing_environment_is_said(tmp_path: Path) -> None:
    environment = os.environ | {"MILP_RAY_ENVIRONMENT": str(tmp_path), "MILP_RAY_SLURM": str(SLURM)}
    done = run("bash", SLURM / "search.sbatch", "search", "study.yaml", env=environment)
    assert done.returncode == 2 and "MILP_RAY_ENVIRONMENT" in done.stderr


@pytest.mark.parametrize("code", [0, 7, 127])
def test_record_keeps_the_exit_code(tmp_path: Path, code: int) -> None:
    for _ in range(5):  # a command that ends at once must not be missed
        done = run(SLURM / "record.sh", tmp_path / "code", "bash", "-c", f"exit {code}")
        assert done.returncode == code and (tmp_path / "code").read_text() == f"{code}\n"
    assert not (tmp_path / "code.pid").exists()


@pytest.mark.parametrize("planted", ["open", "link", "absent"])
def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path, planted: str) -> None:
    private = tmp_path / "private"
    if planted == "open":
        private.mkdir()
        private.chmod(0o755)
    elif planted == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        private.symlink_to(tmp_path / "elsewhere")
    environment = os.environ | {"RAY_PRIVATE": str(private)}
    done = run(SLURM / "private.sh", "echo", "began", env=environment)
    if planted == "absent":
        assert done.stdout == "began\n" and stat.S_IMODE(private.stat().st_mode) == 0o700
        assert run(SLURM / "private.sh", "echo", "again", env=environment).stdout == "again\n"
    else:
        assert done.returncode == 1 and not done.stdout and "remedy" in done.stderr


@pytest.mark.nightly
def test_a_search_on_a_real_ray(tmp_path: Path, ended: list[subprocess.Popen[str]], study_file: Path) -> None:
    study = yaml.safe_load(study_file.read_text())
    study["search"] |= {"trials": 2, "initial": 2, "surrogate": "random"}
    study["final"]["automatic"] = False
    study_file.write_text(yaml.safe_dump(study))
    process = play(
        tmp_path,
        "search-srun.sbatch",
        "",
        "",
        SLURM_JOB_NUM_NODES="1",
        SLURM_JOB_ID=str(os.getpid()),
        SLURM_CPUS_PER_TASK="2",
        MILP_RAY_ENVIRONMENT=str(Path(sys.executable).parents[1]),
        PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # loopback only
        STUDY=str(study_file),
    )
    ended.append(process)
    try:
        # Not until its output ends: the head, which Slurm would end with the job, still holds that.
        process.wait(timeout=240)
        (private,) = Path("/tmp").glob(f"mr-{os.getpid()}-*")
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (private, private / "r")]
    finally:
        for made in Path("/tmp").glob(f"mr-{os.getpid()}-*"):
            shutil.rmtree(made, ignore_errors=True)
    assert process.returncode == 0
    assert modes[0] == 0o700, "Ray may open its own folder below, so nobody may come so far"
    assert (study_file.parent / "runs/small/run.json").is_file()
