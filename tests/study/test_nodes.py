"""Several Ray nodes on this machine, one of which dies: nothing finished is lost, and the study
ends well."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.processes import listening_addresses, titled
from tests.study.conftest import Start
from tests.study.test_end_to_end import events, told, wait_for

pytestmark = pytest.mark.slow


def reaped(pid: int, seconds: float = 10) -> None:
    """Wait until a killed raylet is no zombie any more, which its workers would take for a living
    one."""
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline, "nobody reaps raylets: see tests/study/nodes.py"
        time.sleep(0.05)


@dataclass
class Nodes:
    address: str
    raylets: list[int]

    def kill_one_with(self, title: str) -> bool:
        """Kill a node, not the head, that runs a process with this title; False if there is
        none."""
        for pid in self.raylets[1:]:
            if titled(title, pid):
                os.kill(pid, signal.SIGKILL)
                self.raylets.remove(pid)
                reaped(pid)
                return True
        return False


@pytest.fixture
def make_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Nodes]]:
    """Nodes of so many CPUs each, the first the head; ended by the test's end."""
    settings = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_period_ms": "500",  # else a dead node is noticed after a quarter of a minute only
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    folder = tempfile.mkdtemp(prefix="n", dir="/tmp")
    processes: list[subprocess.Popen[str]] = []

    def make(*cpus: int) -> Nodes:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.study.nodes", folder, *map(str, cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        return Nodes(**json.loads(process.stdout.readline()))

    yield make
    for process in processes:
        process.communicate("")
    shutil.rmtree(folder, ignore_errors=True)


def title_of(process: psutil.Process) -> str:
    """What a process calls itself; nothing of one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_nodes_die_under_the_search_and_under_the_final_job(
    study_file: Path, start: Start, make_nodes: Callable[..., Nodes]
) -> None:
    nodes = make_nodes(1, 1, 1, 1)
    run = study_file.parent / "runs" / "small"
    settings = [
        f"ray.address={nodes.address}",
        "ray.workers_per_trial=2",
        "ray.parallelism=ddp",
        "ray.group_timeout=20",
        "search.trials=4",
        "search.surrogate=random",
        "trial.epochs=20",
        "final.epochs=50",
        "final.checkpoint_steps=5",
    ]
    process = start("search", str(study_file), *settings)
    wait_for(lambda: len(told(run)) >= 2, process)
    before = told(run)
    heard = listening_addresses(os.getpid())
    assert heard <= {"127.0.0.1", "::1"}, "ranks of several nodes meet at a door to the network"
    wait_for(lambda: nodes.kill_one_with("ray::Rank"), process)
    wait_for(lambda: list(run.glob("checkpoints/*/00*")), process)
    heard = listening_addresses(os.getpid())
    assert heard <= {"127.0.0.1", "::1"}, "ranks of several nodes meet at a door to the network"
    wait_for(lambda: nodes.kill_one_with("RayTrainWorker"), process)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert sorted(told(run)) == sorted((alias, i) for alias in events(run) for i in range(4))
    assert set(before) <= set(told(run))
    assert len(list((run / "scores").iterdir())) == 2

    # Nothing of ours is left on the nodes that live.
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        left = [
            title
            for pid in nodes.raylets
            for title in map(title_of, psutil.Process(pid).children())
            if any(name in title for name in ("Rank", "Train", "Coordinator", "Propos"))
            # Ray's own, one per cluster.
            and not any(name in title for name in ("TrainState", "_AutoscalingCoordinator"))
        ]
        if not left:
            return
        time.sleep(0.2)
    raise AssertionError(left)
