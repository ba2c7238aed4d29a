"""The head on this machine: refusals, processes ended as families, a real head of two nodes."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.paths import CLUSTER, ROOT, run, tool
from tests.jobs.conftest import free_ports

LOCAL = CLUSTER / "local"


def head_sh(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run head.sh with this Python."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(ROOT), clean.get("PYTHONPATH", "")])
    return run(
        LOCAL / "head.sh", *words, env=clean | {"PYTHON": sys.executable, "PYTHONPATH": path} | environment
    )


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> object:
    """The module beside head.py, which is no package."""
    monkeypatch.syspath_prepend(str(LOCAL))
    import processes

    return processes


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: Ray's sockets go below it."""
    made = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))
    yield made
    head_sh("stop", made)
    shutil.rmtree(made, ignore_errors=True)


def test_nothing_runs_yet(tmp_path: Path) -> None:
    assert head_sh("status", tmp_path).returncode == 1
    assert head_sh("stop", tmp_path).returncode == 0
    for command in ("env", "node"):
        done = head_sh(command, tmp_path)
        assert done.returncode == 2 and "no head is running" in done.stderr and "remedy" in done.stderr


def test_a_port_that_is_taken_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = head_sh("start", tmp_path / "new", f"--port={free_ports(1)[0]}", f"--dashboard-port={port}")
    assert done.returncode == 2 and f"port {port}" in done.stderr and "--dashboard-port" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["start", "node", "env", "status", "stop"])
def test_a_folder_that_others_can_write_in_is_not_trusted(tmp_path: Path, command: str) -> None:
    """Its head.json says which processes are ended, and what a client's shell runs."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    done = head_sh(command, tmp_path / "shared")
    assert done.returncode == 2 and "others may write" in done.stderr and "remedy" in done.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    done = head_sh(command, tmp_path / "link")
    assert done.returncode == 2 and "is no folder of its own" in done.stderr
    assert not list((tmp_path / "shared").iterdir()) and not list((tmp_path / "mine").iterdir())


def test_rays_files_never_go_into_a_folder_that_took_the_place_of_ours(
    processes: object, tmp_path: Path
) -> None:
    import head

    folder = tmp_path / ("long-" * 10)
    folder.mkdir()
    first = head._sessions(folder)
    assert first.parent.stat().st_mode & 0o077 == 0
    first.parent.chmod(0o777)  # as if it had been removed, and made anew by somebody
    second = head._sessions(folder)
    try:
        assert second.parent != first.parent and second.parent.stat().st_mode & 0o077 == 0
    finally:
        for made in (first.parent, second.parent):
            made.rmdir()


@pytest.mark.parametrize(
    ("content", "mode", "fault"),
    [("secret", 0o644, "can be read by others"), ("", 0o600, "is empty"), (None, 0, "cannot be read")],
)
def test_a_bad_token_file_is_refused(tmp_path: Path, content: str | None, mode: int, fault: str) -> None:
    token = tmp_path / "token-file"
    if content is not None:
        token.write_text(content, encoding="ascii")
        token.chmod(mode)
    port, dashboard, metrics = free_ports(3)
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--metrics-port={metrics}"]
    done = head_sh("start", tmp_path / "f", "--token-file", token, *ports)
    assert done.returncode == 2 and fault in done.stderr and "remedy" in done.stderr
    assert not (tmp_path / "f/head.json").exists()


def test_a_damaged_state_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "head.json").write_text('{"head": 3}', encoding="utf-8")
    done = head_sh("status", tmp_path)
    assert done.returncode == 2 and "damaged" in done.stderr and "Traceback" not in done.stderr


def test_a_process_is_ended_with_its_family_and_nobody_else(tmp_path: Path, processes: object) -> None:
    # A stubborn child in a session of its own, as a job's process is.
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    parent = (
        "import subprocess, sys, time; "
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True); "
        "print(child.pid, flush=True); time.sleep(60)"
    )
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        log = tmp_path / "log"
        process = processes.launch([sys.executable, "-c", parent], log, os.environ)  # type: ignore[attr-defined]
        deadline = time.monotonic() + 20
        while not log.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        pid = int(log.read_text())
        reborn = processes.Process(process.pid, process.created - 100)  # type: ignore[attr-defined]
        assert process.is_alive() and not reborn.is_alive()
        assert processes.end([reborn], grace=0.5) == 0 and process.is_alive()  # type: ignore[attr-defined]
        assert processes.end([process], grace=0.5) == 2  # type: ignore[attr-defined]
        assert not process.is_alive()
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_scripts_pass_shellcheck() -> None:
    done = run(tool("shellcheck"), LOCAL / "head.sh")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_head_with_a_second_node_on_loopback_alone(folder: Path) -> None:
    port, dashboard, metrics = free_ports(3)
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--metrics-port={metrics}"]
    small = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000"]
    started = head_sh("start", folder, *ports, *small)
    assert started.returncode == 0, started.stderr
    assert f"export RAY_ADDRESS=http://127.0.0.1:{dashboard}" in started.stdout.splitlines()
    assert oct((folder / "token").stat().st_mode & 0o777) == "0o600"
    assert head_sh("start", folder, *ports).returncode == 2  # it runs already
    assert head_sh("node", folder, *small).returncode == 0
    status = head_sh("status", folder)
    assert status.returncode == 0 and "further nodes: 1" in status.stderr

    # A client that takes the printed lines sees both nodes.
    code = f"import ray; ray.init(address='127.0.0.1:{port}', log_to_driver=False); print(len(ray.nodes()))"
    switch = "export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0"  # milp_ray sets it for a head on loopback
    lines = f"{started.stdout}\n{switch}\nunset RAY_ADDRESS\n'{sys.executable}' -c \"{code}\""
    assert run("bash", "-c", lines).stdout.split() == ["2"]

    family = family_of(folder)
    listening = {
        connection.laddr.ip
        for member in family
        for connection in member.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening and {ip.removeprefix("::ffff:") for ip in listening} <= {"127.0.0.1", "::1"}

    assert head_sh("stop", folder).returncode == 0
    assert not [
        member for member in family if member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    ]
    assert head_sh("status", folder).returncode == 1


def family_of(folder: Path) -> list[psutil.Process]:
    """All processes of a head and its nodes."""
    state = json.loads((folder / "head.json").read_text(encoding="utf-8"))
    roots = [psutil.Process(process["pid"]) for process in (state["head"], *state["nodes"])]
    return [*roots, *(child for root in roots for child in root.children(recursive=True))]


def test_no_page_has_a_shell_run_a_file_of_a_shared_folder() -> None:
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *CLUSTER.rglob("*.md"), *CLUSTER.rglob("*.sh")]
    found = [
        f"{page.name}: {line.strip()}"
        for page in pages
        for line in page.read_text(encoding="utf-8").splitlines()
        if re.search(r"(^|[;&|`\s])(\.|source|bash|sh)\s+/(var/)?tmp/|head\.sh \w+ /tmp/", line)
    ]
    assert not found
