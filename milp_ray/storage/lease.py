"""Who works on a run at a URL: one process at a time, by a lease that it renews while it lives.

Asks nothing of a store but that a list shows what was put before (S3, Google Cloud Storage and file systems
do): everyone who wants the run puts an object of its own and then lists. Of two at once at least one sees the
other and takes its object back, so that never two go on. The object is put again every few seconds; one that
is silent for two minutes is that of a holder who is gone, and one of this machine whose process has ended is
known to be so at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from milp_ray.errors import MilpRayError, RunBusyError, StorageError
from milp_ray.storage.objects import Objects
from milp_ray.storage.urls import joined

FOLDER = "lease"
_KEYS = {"host", "machine", "pid", "started", "beat", "written"}
_READS = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """What a lease says: an id, where its process is, and when it was put last.

    ``beat`` counts how often it was put. ``seen``: seconds since 1970, by the store's clock where it has one.
    """

    id: str
    host: str
    machine: str
    pid: int
    started: float
    beat: int
    seen: float

    @property
    def here(self) -> bool:
        """Whether it is a process of this machine (and of this container)."""
        return self.machine == _machine()

    @property
    def ended(self) -> bool:
        """Whether it is known to be gone; False for another machine's, of which nothing is known."""
        if not self.here:
            return False
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) > 1)
        except psutil.Error:
            return True


class Lease:
    """Holds a run for the length of a ``with`` block.

    Args:
        objects: of the run.
        beat: seconds between two renewals.
        stale: seconds of silence after which a holder counts as gone.

    Raises:
        RunBusyError: on entry, another holder is alive. One of another machine is watched until it shows a
            sign of life or was silent for long enough.
        StorageError: on entry, the store cannot be used.
    """

    def __init__(self, objects: Objects, *, beat: float = 15.0, stale: float = 120.0) -> None:
        self._objects = objects
        self._every, self._stale = beat, stale
        self._id = secrets.token_hex(8)
        self._started = psutil.Process().create_time()
        self._beats = 0
        self._confirmed = 0.0
        self._beside: frozenset[str] = frozenset()
        self._lost = False
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        try:
            self._take()
        except BaseException:  # Ctrl-C while it waits, say
            with contextlib.suppress(MilpRayError):
                self._objects.delete(self._name(self._id))
            raise
        threading.Thread(target=self._renew, name="lease", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with self._lock:
            if not self._lost:
                try:
                    self._objects.delete(self._name(self._id))
                except MilpRayError as failure:  # it goes stale by itself
                    _log.warning("a lease could not be given back: %s", failure.problems[0].fact)

    def hold(self) -> None:
        """Make sure that the run is still this process's; to be called before anything of it is written.

        Raises:
            RunBusyError: another process took it over.
            StorageError: the store does not answer, and has not for so long that another might have.
        """
        if time.monotonic() - self._confirmed > self._stale / 2:
            self._beat()
        if self._lost:
            raise RunBusyError(
                "another milp-ray took over this run, as this one gave no sign of life",
                where=self._objects.url,
                expected=f"a renewal of the lease within {self._stale:.0f} s",
                remedy="nothing was written since; let the other one work, or stop it and resume",
            )

    def confirm(self) -> None:
        """As :meth:`hold`, but asks the store now: before anything is deleted that others may have written.

        Raises:
            RunBusyError, StorageError: see :meth:`hold`.
        """
        self._beat()
        self.hold()

    def _take(self) -> None:
        ahead = self._clock_ahead()
        watched: dict[str, int] = {}
        while True:
            others = self._others()
            if not others:
                self._put()
                if not self._others():
                    return
                self._objects.delete(self._name(self._id))
                time.sleep(random.uniform(0.05, 0.5))  # both step back; chance says who comes first
                continue
            for other in others:
                silent = time.time() + ahead - other.seen
                if other.ended or silent > self._stale:
                    self._objects.delete(self._name(other.id))
                elif other.here or watched.setdefault(other.id, other.beat) != other.beat:
                    raise self._held(other, silent)
                else:
                    left = self._stale - silent
                    _log.warning("%s holds the run; waiting %.0f s for a sign of life", other.host, left)
                    self._ended.wait(min(max(left, 0.1), self._every / 3))

    def _held(self, other: Holder, silent: float) -> RunBusyError:
        return RunBusyError(
            f"another milp-ray is working on this run: process {other.pid} on {other.host}, "
            f"last sign of life {max(silent, 0):.0f} s ago",
            where=self._objects.url,
            expected="one driver per run",
            remedy="wait for it, or stop it with Ctrl-C, then resume; one that was killed is given up "
            f"after {self._stale:.0f} s without a sign of life",
        )

    def _clock_ahead(self) -> float:
        """Seconds by which the store's clock is ahead of this machine's; 0 if it keeps no times."""
        name = f"{FOLDER}/clock-{self._id}"
        self._objects.put(name, b"{}")
        now = time.time()
        times = [found.mtime for found in self._objects.found(FOLDER) if found.name == name]
        self._objects.delete(name)
        return times[0] - now if times and times[0] is not None else 0.0

    def _others(self) -> list[Holder]:
        return [holder for holder in self._holders() if holder.id != self._id]

    def _holders(self) -> list[Holder]:
        result = []
        for found in self._objects.found(FOLDER):
            name = found.name.removeprefix(f"{FOLDER}/")
            if not name.startswith("by-"):
                continue
            values = self._read(found.name)
            if values is None:  # given back meanwhile
                continue
            written = values.pop("written")
            seen = written if found.mtime is None else found.mtime
            result.append(Holder(id=name.removeprefix("by-"), seen=seen, **values))
        return result

    def _read(self, name: str) -> dict[str, Any] | None:
        for _ in range(_READS):
            try:
                values = json.loads(self._objects.get(name))
                if isinstance(values, dict) and values.keys() == _KEYS:
                    return values
            except FileNotFoundError:
                return None
            except ValueError:
                pass
            time.sleep(0.1)  # some stores show an object before all of it is there
        raise StorageError(
            "a lease is damaged",
            where=joined(self._objects.url, name),
            expected="what milp-ray wrote there",
            remedy="make sure that no milp-ray works on the run, then delete it",
        )

    @staticmethod
    def _name(holder: str) -> str:
        return f"{FOLDER}/by-{holder}"

    def _put(self) -> None:
        self._beats += 1
        values = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": self._started,
            "beat": self._beats,
            "written": time.time(),
        }
        self._objects.put(self._name(self._id), json.dumps(values).encode())
        self._confirmed = time.monotonic()

    def _renew(self) -> None:
        while not self._ended.wait(self._every) and not self._lost:
            try:
                self._beat()
            except MilpRayError as error:  # hold() tells, should it last
                _log.debug("%s", error)

    def _beat(self) -> None:
        with self._lock:
            if self._ended.is_set() or self._lost:
                return
            holders = {holder.id for holder in self._holders()}
            # Somebody who wants the run shows for a moment; who stays has it.
            beside, before = frozenset(holders - {self._id}), self._beside
            self._beside = beside
            if self._id not in holders or beside & before:
                self._lost = True
                return
            self._put()


def _machine() -> str:
    """What tells processes that see each other's ids from all others: host, boot, namespace of ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
