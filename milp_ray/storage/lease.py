"""Who works on a run: one owner at a time, by a lease that its owner renews while it lives.

The lease asks nothing of a store but that a list shows what was put before (S3, Google Cloud
Storage and file systems do): everyone who wants the run puts an object of its own (``lease/by-ID``)
and then lists. Of two at once at least one sees the other and takes its object back, so two never
go on. The owner puts its object again every few seconds, its heartbeat. An id is claimed once and
never again, so a late delete meets nobody else.

No two clocks are compared. Whoever wants a run that has an owner watches the owner's heartbeats,
and takes over when none came for ``timeout`` seconds *by its own boot clock*. The owner writes only
for ``timeout / 3`` seconds after it began its last renewal, by the boot clock or the wall clock,
whichever went further: a renewal that was under way, and a put of up to ``timeout / 3`` seconds,
are over before anybody takes over. An owner that is later than that, since its machine was
suspended, say, claims the run anew, and has it only if nobody had it since: ``lease/last`` names
who took it last.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import random
import secrets
import threading
from typing import Self

from milp_ray.errors import MilpRayError, RunBusyError, StorageError
from milp_ray.layout import LEASES
from milp_ray.storage.clock import CLOCK, Clock, Instant
from milp_ray.storage.objects import Objects
from milp_ray.storage.owner import Owner, Process
from milp_ray.storage.urls import joined

_CLAIM = f"{LEASES}/by-"
_LAST = f"{LEASES}/last"
_READS = 10
_CLAIMS = 5
_NEVER = Instant(-math.inf, -math.inf)
_log = logging.getLogger(__name__)


class Lease:
    """Makes this process the owner of a run for the length of a ``with`` block.

    Args:
        objects: of the run.
        interval: seconds between two heartbeats.
        timeout: seconds without a heartbeat after which an owner counts as gone.
        clock: of this machine.
        process: the owner; None: this process.
        kernel_lock: this process also has a lock that any other owner on this machine would have.
        background: renew the lease in a thread; else the caller does, by :meth:`heartbeat`.

    Raises:
        RunBusyError: on entry, another owner is alive. One of another machine is watched until its
            heartbeat moves or the timeout is over.
        StorageError: on entry, the store cannot be used.
    """

    def __init__(
        self,
        objects: Objects,
        *,
        interval: float = 15.0,
        timeout: float = 120.0,
        clock: Clock = CLOCK,
        process: Process | None = None,
        kernel_lock: bool = False,
        background: bool = True,
    ) -> None:
        self._objects = objects
        self._interval, self._timeout, self._valid = interval, timeout, timeout / 3
        self._clock = clock
        self._process = process or Process.this()
        self._kernel_lock, self._background = kernel_lock, background
        self._session = secrets.token_hex(8)
        self._id = ""
        self._mine: set[str] = set()  # all ids that were ever claimed: a late put may bring one back
        self._there: set[str] = set()  # those that were not given back
        self._heartbeats = 0
        self._confirmed = _NEVER
        self._doubt = -math.inf  # boot clock
        self._lost = False
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        try:
            self._take()
        except BaseException:  # Ctrl-C while it waits, say
            self._give_back()
            raise
        if self._background:
            threading.Thread(target=self._renew, name="lease", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._linger()
        self._ended.set()
        with self._lock:
            self._give_back()

    def _linger(self) -> None:
        """What had no answer must not land in a run that somebody else has taken meanwhile."""
        left = self._valid - (self._clock.boot() - self._doubt)
        if left > 1 and not self._lost:
            _log.warning("the storage left writes unanswered; the run is given back in %.0f s", left)
        while left > 0 and not self._lost:
            self._clock.sleep(min(left, self._interval))
            if not self._background:
                with contextlib.suppress(MilpRayError):
                    self.heartbeat()
            left = self._valid - (self._clock.boot() - self._doubt)

    def ensure_held(self) -> None:
        """Make sure that the run is still this process's, before anything of it is written.

        Costs nothing while the last renewal is young. After a suspension it is renewed first.

        Raises:
            RunBusyError: another process took it over.
            StorageError: the store does not answer, or not in time.
        """
        for _ in range(_CLAIMS):
            if self._lost:
                raise RunBusyError(
                    "another milp-ray took over this run, as this one gave no sign of life",
                    where=self._objects.url,
                    expected=f"a renewal of the lease within {self._valid:.0f} s",
                    remedy="nothing was written since; let the other one work, or stop it and resume",
                )
            if not self._ran_out():
                return
            if not self.heartbeat():
                self._clock.sleep(random.uniform(0.05, 0.5))
        raise self._too_late()

    def confirm(self) -> None:
        """As :meth:`ensure_held`, but asks the store now: before others' files are deleted.

        Raises:
            RunBusyError, StorageError: see :meth:`ensure_held`.
        """
        self.heartbeat()
        self.ensure_held()

    def note_doubt(self) -> None:
        """Note that a write had no answer and may land yet: the run is given back later."""
        self._doubt = self._clock.boot()

    def heartbeat(self) -> bool:
        """Renew it; whether that is done. Once it has run out, it is claimed anew.

        Raises:
            StorageError: the store does not answer.
        """
        with self._lock:
            if self._ended.is_set() or self._lost:
                return False
            began = self._clock.now()
            if self._ran_out():
                if self._claimed(began):
                    return True
            elif f"{_CLAIM}{self._id}" not in self._claims():
                self._confirmed = _NEVER  # somebody took this process for gone
            elif self._last() == self._session:
                self._put(self._id)
                self._confirmed = began
                return True
            self._lost = self._last() != self._session
            return False

    def _ran_out(self) -> bool:
        return self._clock.at_most(self._confirmed) > self._valid

    def _take(self) -> None:
        watched: dict[str, tuple[int, float]] = {}
        while True:
            began = self._clock.now()
            others = self._others()
            if not others and self._claimed(began, first=True):
                return
            if not others:
                self._clock.sleep(random.uniform(0.05, 0.5))  # both step back; chance says who comes first
            for other in others:
                if other.id not in watched:
                    watched[other.id] = (other.heartbeat, self._clock.boot())
                self._wait_for(other, *watched[other.id], began)

    def _wait_for(self, other: Owner, heartbeat: int, since: float, began: Instant) -> None:
        """Take another's claim away if it is gone, refuse if it is alive, else wait a little.

        Args:
            other: as it was after ``began``.
            heartbeat: what it was at first.
            since: boot clock when it was that.
            began: before this look: later may be much later.
        """
        silent = began.boot - since
        if self._is_gone(other):
            self._objects.delete(f"{_CLAIM}{other.id}")
        elif heartbeat != other.heartbeat:
            raise self._busy(other, 0.0)
        elif silent > self._timeout:
            self._objects.delete(f"{_CLAIM}{other.id}")
        elif self._is_active_here(other):
            raise self._busy(other, self._clock.wall() - other.written)
        else:
            if silent <= 0:
                host, seconds = other.process.host, self._timeout
                _log.warning("%s holds the run; waiting up to %.0f s for a sign of life", host, seconds)
            self._clock.sleep(min(max(self._timeout - silent, 0.1), self._interval / 3))

    def _claimed(self, began: Instant, *, first: bool = False) -> bool:
        """Put an object under a new id, and look whether nobody else has; step back if so.

        Args:
            began: before anything of this was done.
            first: nobody needs to have had it in between, as nothing of the run is known yet.
        """
        id = secrets.token_hex(8)
        self._mine.add(id)
        self._there.add(id)
        self._put(id)
        rivals = self._claims() - {f"{_CLAIM}{mine}" for mine in self._mine}
        if rivals or not (first or self._last() == self._session):
            self._give_back(id)
            return False
        if first:
            self._objects.put(_LAST, json.dumps({"session": self._session}).encode())
            if self._clock.at_most(began) > self._valid:  # another may have had it before that put
                raise self._too_late()
        self._id, self._confirmed = id, began
        for old in self._there - {id}:
            self._give_back(old)
        return True

    def _is_gone(self, other: Owner) -> bool:
        """Whether an owner is known to have ended."""
        if self._kernel_lock and other.process.boot == self._process.boot:
            return True
        return self._process.has_ended(other)

    def _is_active_here(self, other: Owner) -> bool:
        """Whether an owner was active lately on this machine, so by this wall clock."""
        return (
            other.process.machine == self._process.machine
            and self._clock.wall() - other.written < self._timeout
        )

    def _busy(self, other: Owner, silent: float) -> RunBusyError:
        return RunBusyError(
            f"another milp-ray is working on this run: process {other.process.pid} on {other.process.host}, "
            f"last sign of life {max(silent, 0):.0f} s ago",
            where=self._objects.url,
            expected="one driver per run",
            remedy="wait for it, or stop it with Ctrl-C, then resume; one that was killed is given up "
            f"after {self._timeout:.0f} s without a sign of life",
        )

    def _claims(self) -> set[str]:
        """Names of the objects of all who have the run or want it."""
        return {found.name for found in self._objects.list_below(LEASES) if found.name.startswith(_CLAIM)}

    def _others(self) -> list[Owner]:
        others = (self._owner(name) for name in sorted(self._claims()))
        return [other for other in others if other is not None and other.id not in self._mine]

    def _owner(self, name: str) -> Owner | None:
        """Who put an object; None if it is gone."""
        for _ in range(_READS):
            try:
                return Owner.of(name.removeprefix(_CLAIM), self._objects.get(name))
            except FileNotFoundError:
                return None
            except ValueError:
                self._clock.sleep(0.1)  # some stores show an object before all of it is there
        raise self._damaged(name)

    def _last(self) -> str | None:
        """The session that took the run last; None where nobody ever did."""
        for _ in range(_READS):
            try:
                return str(json.loads(self._objects.get(_LAST))["session"])
            except FileNotFoundError:
                return None
            except (ValueError, KeyError, TypeError):
                self._clock.sleep(0.1)
        raise self._damaged(_LAST)

    def _damaged(self, name: str) -> StorageError:
        return StorageError(
            "a lease is damaged",
            where=joined(self._objects.url, name),
            expected="what this version of milp-ray writes there",
            remedy="make sure that no milp-ray works on the run, then delete it",
        )

    def _too_late(self) -> StorageError:
        return StorageError(
            "the lease of the run could not be had in time",
            where=self._objects.url,
            expected=f"a store that answers within {self._valid:.0f} s, and nobody else who wants the run",
            remedy="nothing was written since; resume when the storage is well",
        )

    def _put(self, id: str) -> None:
        self._heartbeats += 1
        owner = Owner(id, self._process, self._heartbeats, self._clock.wall())
        self._objects.put(f"{_CLAIM}{id}", owner.content())

    def _give_back(self, id: str | None = None) -> None:
        for each in sorted(self._there) if id is None else [id]:
            try:
                self._objects.delete(f"{_CLAIM}{each}")
                self._there.discard(each)
            except MilpRayError as failure:  # it goes stale by itself
                _log.warning("a lease could not be given back: %s", failure.problems[0].fact)

    def _renew(self) -> None:
        while not self._ended.wait(self._interval) and not self._lost:
            with contextlib.suppress(MilpRayError):  # ensure_held() tells, should it last
                self.heartbeat()
