"""A private Ray: on loopback only, with a token, gone afterwards; errors that say what to do."""

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
from milp_ray.storage import LockFile
from milp_ray.tune.cluster.own_folder import clean_up
from milp_ray.tune.cluster.session import _connecting, ray_session
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
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scratch: Path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "somebody else's")
    # What a shell may have left, each of which breaks a run, and the folder of the command.
    monkeypatch.setenv("TUNE_RESULT_DIR", "/nowhere")
    monkeypatch.setenv("LOCAL_RANK", "7")
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    for dashboard in (False, True):  # a second session in one process has a token of its own
        with ray_session(RaySettings(dashboard=dashboard)) as session:
            import ray

            assert os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in os.environ
            assert listening_addresses(os.getpid()) <= {"127.0.0.1", "::1"}
            assert session.folder is not None and oct(session.folder.stat().st_mode & 0o777) == "0o700"
            seen, path = ray.get(ray.remote(lambda: (dict(os.environ), sys.path)).remote())
            assert seen["RAY_USAGE_STATS_ENABLED"] == "0" and seen.get("LOCAL_RANK") in (None, "0")
            assert "TUNE_RESULT_DIR" not in os.environ and os.environ["RAY_TRAIN_V2_ENABLED"] == "1"
            assert str(tmp_path) not in path and "" not in path
            assert not dashboard or wait_for(lambda: list(scratch.rglob("listener-*")))
        assert not session.folder.exists() and not ray.is_initialized()
        assert not list(scratch.iterdir())
    assert {name: os.environ.get(name) for name in before} == before


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
    with LockFile(tmp_path / "mr-alive" / "pid", str(dead.pid)):
        clean_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mr-alive", "mr-begins", "mr-foreign"]


def a_study(device: str = "auto", **settings: object) -> Study:
    raw = {"name": "s", "model": {"path": "m", "device": device}, "data": {"path": "d"}, "ray": settings}
    return Study.model_validate(raw)


def test_trials_at_once_are_counted_and_what_no_node_can_run_or_see_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from milp_ray.tune.cluster.resources import TrialResources, on_device, trial_resources
    from milp_ray.tune.cluster.shared import check_shared

    with ray_session(RaySettings()) as outer:
        with ray_session(RaySettings()) as inner:
            assert inner is outer, "a study inside another's session joins it"
        cpus = int(ray.cluster_resources()["CPU"])
        with pytest.raises(ClusterError, match=r"ray\.cpus_per_worker"):
            trial_resources(a_study(cpus_per_worker=4096.0))
        with pytest.raises(ClusterError, match=r"ray\.gpus_per_worker"):
            trial_resources(a_study(gpus_per_worker=1.0))
        worker = trial_resources(a_study(gpus_per_worker=0.0))
        assert worker == TrialResources({"CPU": 1.0}, cpus)
        assert trial_resources(a_study(gpus_per_worker=0.0, max_concurrent=1)).concurrent == 1
        assert trial_resources(a_study(gpus_per_worker=0.0, cpus_per_worker=0.5)).concurrent == 2 * cpus
        pair = {"gpus_per_worker": 0.0, "workers_per_trial": 2, "parallelism": "ddp"}
        assert trial_resources(a_study(**pair, cpus_per_worker=0.5)) == TrialResources({"CPU": 0.5}, cpus, 2)
        with pytest.raises(ClusterError, match=r"ray\.workers_per_trial") as refused:
            trial_resources(a_study(**(pair | {"workers_per_trial": 4096})))
        assert f"the cluster holds {cpus}" in str(refused.value)
        assert on_device(a_study(), worker).model.device == "cpu"
        assert on_device(a_study(), TrialResources({"CPU": 1.0, "GPU": 1.0}, 1)).model.device == "cuda"
        check_shared(Path("/no/such/folder"))  # one node: nothing to share
        # A node that was there a moment ago is lost when it is asked.
        nodes = [*ray.nodes(), {"NodeID": "ab" * 28, "Alive": True}]
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        with pytest.raises(ClusterError, match="1 of 2 nodes do not see the run folder /no/such/folder"):
            check_shared(Path("/no/such/folder"))
        (tmp_path / "run.json").touch()
        check_shared(tmp_path)


def test_a_client_address_is_refused() -> None:
    with pytest.raises(ClusterError, match="milp-ray submit"), ray_session(RaySettings(address="ray://h:1")):
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
    from milp_ray.tune.cluster.uv_hook import switch_off_uv_hook
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


MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.59.0
    Python: 3.11.7
This process on node 127.0.0.1:7123 was started with:
    Ray: 2.60.0
    Python: 3.12.1
"""


def test_both_sides_of_a_version_mismatch_are_named() -> None:
    with pytest.raises(ClusterError) as caught, _connecting("h:1"):
        raise RuntimeError(MISMATCH)
    text = str(caught.value)
    assert "h:1 has Ray 2.59.0 and Python 3.11.7, this driver Ray 2.60.0 and Python 3.12.1" in text
    assert caught.value.exit_code == 2 and "milp-ray submit" in text


def test_rays_reason_is_told_whole() -> None:
    with pytest.raises(ClusterError) as caught, _connecting("h:1"):
        raise RuntimeError("Failed to set up runtime environment.\nThe actor:\n  no such file x")
    assert "Failed to set up runtime environment. The actor: no such file x" in str(caught.value)
    assert caught.value.exit_code == 1
    with pytest.raises(ClusterError) as caught, _connecting("h:1"):
        raise RuntimeError(" ".join(f"line{n}" for n in range(2000)))
    assert "line0 " in str(caught.value) and "line1999" in str(caught.value)
    assert len(str(caught.value)) < 1500


JOIN = """
import os, sys
sys.path.remove("")  # as the command does; the folder holds a module that Ray's workers would import
from milp_ray.config.models import RaySettings
from milp_ray.tune.cluster.session import _connecting, ray_session
with ray_session(RaySettings(address=sys.argv[1])):
    import ray
    path = ray.get(ray.remote(lambda: sys.path).remote())
    print("joined", os.getcwd() in path)
"""


def test_a_head_that_listens_on_loopback_only_is_joined_and_left_running(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))
    (tmp_path / "token").write_text("ab" * 32)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",  # what tells it from other heads of this machine, for `auto`
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
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
        environment.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
        (tmp_path / "users.jsonl").write_text("CANARY")
        (tmp_path / "msgpack.py").write_text("raise ImportError('of the folder')")
        for address in (f"127.0.0.1:{port}", "auto"):
            join = [sys.executable, "-c", JOIN, address]
            done = as_uv_run(join, tmp_path, environment)
            assert "joined False" in done.stdout, done.stdout + done.stderr
        assert head.poll() is None
        assert not list(folder.rglob("users.jsonl")), "the working folder travelled"
    finally:
        processes = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)
