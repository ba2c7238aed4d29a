"""A local Ray's processes: detached from the shell, known by id and birth, ended as families."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from milp_ray.storage import reading, write_json

HOST = "127.0.0.1"
_FILE = "head.json"
_GRACE_SECONDS = 15.0


@dataclass(frozen=True)
class Process:
    """A process id with the time of its birth: ids are used again."""

    pid: int
    created: float

    def find(self) -> psutil.Process | None:
        """The living process; None where it ended, or another one has its id now."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.created) < 1
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.find() is not None


@dataclass(frozen=True)
class State:
    """What is kept of a head between two commands, in ``head.json`` of its folder.

    Attributes:
        head, nodes: the commands that hold a head's and each further node's processes.
        address: host:port of the head.
        dashboard: URL of dashboard and jobs.
        metrics: host:port that Prometheus scrapes.
        token: path of the file.
        sessions: Ray's temporary folder.
    """

    head: Process
    nodes: tuple[Process, ...]
    address: str
    dashboard: str
    metrics: str
    token: str
    sessions: str

    @classmethod
    def read(cls, folder: Path) -> State | None:
        """None where no head was started, or it was stopped.

        Raises:
            StorageError: the file is damaged.
        """
        path = folder / _FILE
        if not path.exists():
            return None
        with reading(path):
            plain = json.loads(path.read_text(encoding="utf-8"))
            try:
                head, nodes = Process(**plain.pop("head")), tuple(Process(**n) for n in plain.pop("nodes"))
                return cls(head=head, nodes=nodes, **plain)
            except (TypeError, KeyError, AttributeError) as error:
                raise ValueError(str(error)) from None

    def write(self, folder: Path) -> None:
        """Keep it."""
        write_json(folder / _FILE, dataclasses.asdict(self))

    @staticmethod
    def remove(folder: Path) -> None:
        """Nothing is running any more."""
        (folder / _FILE).unlink(missing_ok=True)

    def with_node(self, process: Process) -> State:
        """With one node more; those that ended are left out."""
        alive = (node for node in self.nodes if node.is_alive())
        return dataclasses.replace(self, nodes=(*alive, process))


def launch(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Process:
    """Start a command that outlives this process and its terminal; its output goes to ``log``."""
    with log.open("wb") as file:
        child = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Process(child.pid, psutil.Process(child.pid).create_time())


def answers(state: State) -> bool:
    """Whether the dashboard answers to the token."""
    token = Path(state.token).read_text(encoding="ascii").strip()
    request = urllib.request.Request(
        f"{state.dashboard}/api/version", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def end(roots: Iterable[Process], grace: float = _GRACE_SECONDS) -> int:
    """End processes and all that they started, in order; returns how many there were.

    Each root is asked first, since Ray's own processes clean up on SIGTERM. What is left is killed:
    workers, and the jobs' own processes, which are in sessions of their own.
    """
    ended = 0
    for root in roots:
        found = root.find()
        if found is None:
            continue
        family = [found, *found.children(recursive=True)]
        with contextlib.suppress(psutil.NoSuchProcess):
            found.terminate()
        left = _wait(family, grace)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _wait(left, _GRACE_SECONDS)
        ended += len(family)
    return ended


def _wait(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Processes that still run after so many seconds; a zombie does not run."""
    deadline = time.monotonic() + seconds
    left = list(processes)
    while left and time.monotonic() < deadline:
        left = [process for process in left if _runs(process)]
        time.sleep(0.1)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
