"""A Ray head of the tests' own, with a token, and the project's commands beside it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.study.conftest import study_file  # noqa: F401  (a fixture)

ROOT = Path(__file__).parents[2]
HEAD = ROOT / "cluster" / "local" / "head.sh"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass
class Head:
    """A running head: where it is, and how to talk to it."""

    folder: Path
    dashboard: str
    metrics: str
    environment: dict[str, str]

    def milp_ray(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start `milp-ray` as a client of this head."""
        return self.start(sys.executable, "-m", "milp_ray", *words, **options)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command as a client of this head."""
        environment = self.environment | options.pop("environment", {})
        return subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=options.pop("cwd", ROOT),
        )

    def get(self, path: str) -> Any:
        """JSON from the dashboard's API."""
        token = (self.folder / "token").read_text(encoding="ascii")
        request = urllib.request.Request(self.dashboard + path, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def scrape(self) -> str:
        """What the metrics port says."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=30) as answer:
            return str(answer.read().decode())


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """One head for the tests of a module."""
    folder = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))  # short: Ray's sockets go below it
    port, dashboard, metrics = free_ports(3)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "OMP_NUM_THREADS": "1",
        "RAY_metrics_report_interval_ms": "1000",  # runs are short here
        "RAY_worker_niceness": "0",  # see tests/conftest.py
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    words = ["start", str(folder), f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    try:
        subprocess.run(
            ["bash", str(HEAD), *words, f"--metrics-port={metrics}"], check=True, env=environment, text=True
        )
        yield Head(
            folder,
            f"http://127.0.0.1:{dashboard}",
            f"127.0.0.1:{metrics}",
            environment
            | {
                "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
                "RAY_USAGE_STATS_ENABLED": "0",
            },
        )
    finally:
        subprocess.run(["bash", str(HEAD), "stop", str(folder)], check=False, env=environment)
        shutil.rmtree(folder, ignore_errors=True)
