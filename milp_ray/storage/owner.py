"""Which process owns a run: what it says of itself, and whether it is known to have ended."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

FORMAT = 2
# Of a lease of the first format, whose ``beat`` is the heartbeat, and of the second.
_FIRST = {"host", "machine", "pid", "started", "beat", "written"}
_KEYS = {"format", "host", "boot", "machine", "pid", "started", "heartbeat", "written"}


@dataclass(frozen=True)
class Process:
    """A process, as others can recognise it.

    Attributes:
        host: name of the machine, for people.
        boot: of the machine: another one after each start.
        machine: tells processes that see each other's ids from all others: host, boot, namespace of
            ids.
        pid: its id.
        started: seconds from the machine's start to its own, which no change of the wall clock
            moves.
    """

    host: str
    boot: str
    machine: str
    pid: int
    started: float

    @classmethod
    def this(cls) -> Process:
        """This one."""
        host, boot = socket.gethostname(), _boot()
        found = _found(os.getpid())
        return cls(host, boot, f"{host} {boot} {_namespace()}", os.getpid(), found[1] if found else 0.0)

    def has_ended(self, owner: Owner) -> bool:
        """Whether a lease's process is known to have ended; False for another machine's."""
        other = owner.process
        if other.machine != self.machine:
            return False
        try:
            os.kill(other.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's, which may be hidden from /proc
            pass
        if owner.first:
            try:
                return bool(abs(psutil.Process(other.pid).create_time() - other.started) > 1)
            except psutil.Error:
                return False
        found = _found(other.pid)
        return found is not None and (found[0] in "ZX" or abs(found[1] - other.started) > 0.1)


@dataclass(frozen=True)
class Owner:
    """What a lease says.

    Attributes:
        id: of the lease.
        process: whose it is.
        heartbeat: how often it was put.
        written: seconds since 1970 when it was put last, by its own machine's clock.
        first: whether it is of the first format, whose ``started`` is in seconds since 1970.
    """

    id: str
    process: Process
    heartbeat: int
    written: float
    first: bool = False

    def content(self) -> bytes:
        """What stands in the lease; no person is named."""
        process = self.process
        values = {
            "format": FORMAT,
            "host": process.host,
            "boot": process.boot,
            "machine": process.machine,
            "pid": process.pid,
            "started": process.started,
            "heartbeat": self.heartbeat,
            "written": self.written,
        }
        return json.dumps(values).encode()

    @classmethod
    def of(cls, id: str, content: bytes) -> Owner:
        """What :meth:`content` gave.

        Raises:
            ValueError: it is damaged, or of a later format.
        """
        values: Any = json.loads(content)
        first = isinstance(values, dict) and values.keys() == _FIRST
        if not first and (not isinstance(values, dict) or values.keys() != _KEYS):
            raise ValueError("not a lease")
        if not first and values["format"] != FORMAT:
            raise ValueError("not a lease of this format")
        try:
            machine = str(values["machine"])
            boot = [*machine.split(), "", ""][1] if first else str(values["boot"])
            process = Process(
                str(values["host"]), boot, machine, int(values["pid"]), float(values["started"])
            )
            heartbeat = int(values["beat" if first else "heartbeat"])
            return cls(id, process, heartbeat, float(values["written"]), first)
        except TypeError as error:
            raise ValueError("not a lease") from error


def _found(pid: int) -> tuple[str, float] | None:
    """A process's state, and the seconds from the machine's start to its own.

    State ``Z`` has ended, but nobody has asked how. None where the system does not tell.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        return fields[0], int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "-"
