"""A Ray of its own: loopback only, with a token, gone afterwards; and errors that say what to do."""

from __future__ import annotations

import contextlib
import os
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

from milp_ray.config.models import RaySettings, Study
from milp_ray.errors import ClusterError
from milp_ray.storage import held
from milp_ray.tune.session import _sweep, ray_session
from tests.processes import listening_addresses, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder that nobody else uses; short, since Ray's sockets go below it."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


def test_a_private_ray_listens_on_loopback_only_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "somebody else's")
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
    for dashboard in (False, True):  # a second session in one process has a token of its own
        with ray_session(RaySettings(dashboard=dashboard)) as session:
            import ray

            assert os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in os.environ
            assert listening_addresses(os.getpid()) <= {"127.0.0.1", "::1"}
            assert session.folder is not None and oct(session.folder.stat().st_mode & 0o777) == "0o700"
            seen = ray.get(ray.remote(lambda: os.environ.get("RAY_USAGE_STATS_ENABLED")).remote())
            assert seen == "0"
            assert not dashboard or wait_for(lambda: list(scratch.rglob("listener-*")))
        assert not session.folder.exists() and not ray.is_initialized()
        assert not list(scratch.iterdir())
    assert {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")} == before


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    with (
        pytest.raises(ClusterError, match=r"nothing answers at 127\.0\.0\.1:1.*ray\.address|RAY_ADDRESS"),
        ray_session(RaySettings(address="127.0.0.1:1")),
    ):
        pass


def test_what_a_killed_run_left_behind_is_removed_and_a_living_one_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in ("mr-dead", "mr-alive", "mr-foreign", "mr-begins/r", "mr-remnant/r"):
        (tmp_path / name).mkdir(parents=True)
    long_ago = time.time() - 3600
    for name in ("mr-foreign", "mr-remnant"):
        os.utime(tmp_path / name, (long_ago, long_ago))
    (tmp_path / "mr-dead" / "pid").write_text(
        str(os.getpid())
    )  # which was another process's in its container
    # In another container: its process id says nothing here.
    with held(tmp_path / "mr-alive" / "pid", str(dead.pid)):
        _sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mr-alive", "mr-begins", "mr-foreign"]


def a_study(device: str = "auto", **settings: object) -> Study:
    raw = {"name": "s", "model": {"path": "m", "device": device}, "data": {"path": "d"}, "ray": settings}
    return Study.model_validate(raw)


def test_slots_are_counted_and_what_no_node_can_run_or_see_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from milp_ray.tune.shared import check_shared
    from milp_ray.tune.slots import Slots, on_device, slots

    with ray_session(RaySettings()):
        cpus = int(ray.cluster_resources()["CPU"])
        with pytest.raises(ClusterError, match=r"ray\.cpus_per_worker"):
            slots(a_study(cpus_per_worker=4096.0))
        with pytest.raises(ClusterError, match=r"ray\.gpus_per_worker"):
            slots(a_study(gpus_per_worker=1.0))
        worker = slots(a_study(gpus_per_worker=0.0))
        assert worker == Slots({"CPU": 1.0}, cpus)
        assert slots(a_study(gpus_per_worker=0.0, max_concurrent=1)).count == 1
        assert slots(a_study(gpus_per_worker=0.0, cpus_per_worker=0.5)).count == 2 * cpus
        pair = {"gpus_per_worker": 0.0, "workers_per_trial": 2, "parallelism": "ddp"}
        assert slots(a_study(**pair, cpus_per_worker=0.5)) == Slots({"CPU": 0.5}, cpus, 2)
        with pytest.raises(ClusterError, match=r"ray\.workers_per_trial") as refused:
            slots(a_study(**(pair | {"workers_per_trial": 4096})))
        assert f"the cluster holds {cpus}" in str(refused.value)
        assert on_device(a_study(), worker).model.device == "cpu"
        assert on_device(a_study(), Slots({"CPU": 1.0, "GPU": 1.0}, 1)).model.device == "cuda"
        check_shared(Path("/no/such/folder"))  # one node: nothing to share
        # A node that was there a moment ago is lost when it is asked.
        nodes = [*ray.nodes(), {"NodeID": "ab" * 28, "Alive": True}]
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        with pytest.raises(ClusterError, match="1 of 2 nodes do not see the run folder /no/such/folder"):
            check_shared(Path("/no/such/folder"))
        (tmp_path / "run.json").touch()
        check_shared(tmp_path)


def test_a_client_address_is_refused() -> None:
    with pytest.raises(ClusterError, match="ray job submit"), ray_session(RaySettings(address="ray://h:1")):
        pass


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://head.example"])
def test_a_dashboards_address_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match="milp-ray submit"), ray_session(RaySettings(address=address)):
        pass


def as_uv_run(
    command: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """A command run in a folder by what Ray takes for `uv run`, which it knows by its name."""
    (folder / "run").write_text("import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))")
    return subprocess.run(
        ["uv", "run", *command],
        executable=sys.executable,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
    )


HOOKED = """
import sys
if sys.argv[1] == "early":
    import ray
if sys.argv[2] == "off":
    from milp_ray.tune.uv_hook import switch_off_uv_hook
    switch_off_uv_hook()
from ray._private.worker import _maybe_modify_runtime_env
print(sorted(_maybe_modify_runtime_env({}, False)))
"""


@pytest.mark.parametrize("imported", ["early", "late"])
def test_a_driver_of_uv_run_sends_no_folder_to_the_cluster(tmp_path: Path, imported: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

    def sent(switch: str) -> str:
        command = [sys.executable, "-c", HOOKED, imported, switch]
        return as_uv_run(command, tmp_path, environment).stdout.strip()

    assert sent("off") == "[]"
    assert imported == "late" or sent("on") == "['py_executable', 'working_dir']", "Ray's hook is another now"


JOIN = """
import sys
from milp_ray.config.models import RaySettings
from milp_ray.storage import held
from milp_ray.tune.session import ray_session
with ray_session(RaySettings(address=sys.argv[1])):
    import ray
    print("joined", ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


def test_a_head_that_listens_on_loopback_only_is_joined_and_left_running(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))
    environment = os.environ | {
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    words = ["start", "--head", "--block", f"--port={port}", "--num-cpus=1", "--include-dashboard=false"]
    ray_command = [str(Path(sys.executable).parent / "ray"), *words, "--node-ip-address=127.0.0.1"]
    head = subprocess.Popen(
        [*ray_command, f"--temp-dir={folder}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    try:
        deadline = time.monotonic() + 60
        while not any(folder.glob("session_*/sockets/raylet")):
            assert head.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(2)
        join = [sys.executable, "-c", JOIN, f"127.0.0.1:{port}"]
        environment.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
        (tmp_path / "users.jsonl").write_text("CANARY")
        done = as_uv_run(join, tmp_path, environment)
        assert "joined 42" in done.stdout, done.stdout + done.stderr
        assert head.poll() is None
        assert not list(folder.rglob("users.jsonl")), "the working folder travelled"
    finally:
        processes = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)
