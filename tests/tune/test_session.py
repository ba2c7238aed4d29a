"""A Ray of its own: loopback only, with a token, gone afterwards; and errors that say what to do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil
import pytest

from milp_ray.config.models import RaySettings
from milp_ray.errors import ClusterError
from milp_ray.tune.session import _sweep, ray_session

pytestmark = pytest.mark.slow


def listening_addresses(pid: int) -> set[str]:
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    found = set()
    for process in processes:
        for connection in process.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found.add(connection.laddr.ip.removeprefix("::ffff:"))
    return found


def test_a_private_ray_listens_on_loopback_only_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "somebody else's")
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
    for _ in range(2):  # a second session in one process has a token of its own
        with ray_session(RaySettings()) as session:
            import ray

            assert os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in os.environ
            assert listening_addresses(os.getpid()) <= {"127.0.0.1", "::1"}
            assert session.folder is not None and oct(session.folder.stat().st_mode & 0o777) == "0o700"
            seen = ray.get(ray.remote(lambda: os.environ.get("RAY_USAGE_STATS_ENABLED")).remote())
            assert seen == "0"
        assert not session.folder.exists() and not ray.is_initialized()
    assert {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")} == before


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    with (
        pytest.raises(ClusterError, match=r"nothing answers at 127\.0\.0\.1:1.*ray\.address|RAY_ADDRESS"),
        ray_session(RaySettings(address="127.0.0.1:1")),
    ):
        pass


def test_what_a_killed_run_left_behind_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name, owner in (("mr-dead", dead.pid), ("mr-alive", os.getpid())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pid").write_text(str(owner))
    (tmp_path / "mr-foreign").mkdir()
    _sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mr-alive", "mr-foreign"]


def test_a_trial_that_no_node_can_run_is_said_at_once() -> None:
    from milp_ray.tune.search_run import concurrency, resources_per_trial

    with ray_session(RaySettings()) as session:
        with pytest.raises(ClusterError, match=r"ray\.cpus_per_trial"):
            resources_per_trial(RaySettings(cpus_per_trial=4096), session)
        wanted = resources_per_trial(RaySettings(gpus_per_trial=0.0), session)
        assert wanted == {"cpu": 1.0, "gpu": 0.0}
        assert concurrency(RaySettings(max_concurrent=1), session, wanted) == 1
        assert concurrency(RaySettings(), session, wanted) == int(session.cpus)
