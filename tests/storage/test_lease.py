"""One owner at a time, on every kind of store, whoever dies and whoever comes at the same
moment."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections.abc import Callable

import pytest

from milp_ray.errors import RunFolderError, StorageError
from milp_ray.layout import LEASES
from milp_ray.storage.clock import Clock
from milp_ray.storage.lease import Lease
from milp_ray.storage.objects import Objects, objects_at
from milp_ray.storage.owner import Owner, Process
from tests.storage.conftest import Failing


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this process look like one of another machine from now on."""

    def become(name: str) -> None:
        process = Process(name, f"boot of {name}", f"{name} boot pids", 1, 0.0)
        monkeypatch.setattr(Process, "this", classmethod(lambda cls: process))

    return become


def leases(objects: Objects) -> list[str]:
    return [found.name for found in objects.list_below(LEASES) if "/by-" in found.name]


def test_a_second_owner_is_refused_and_told_who_has_it(objects: Objects) -> None:
    with Lease(objects):
        with pytest.raises(RunFolderError, match=r"another milp-ray.*process \d+ on .*last sign of life"):
            Lease(objects).__enter__()
        assert len(leases(objects)) == 1
    assert leases(objects) == []
    with Lease(objects):
        pass


def test_one_of_another_machine_is_refused_once_it_shows_a_sign_of_life(
    objects: Objects, elsewhere: Callable[[str], None]
) -> None:
    with Lease(objects, interval=0.3, timeout=60):
        elsewhere("another")
        began = time.monotonic()
        with pytest.raises(RunFolderError, match="another milp-ray"):
            Lease(objects, interval=0.3, timeout=60).__enter__()
        assert time.monotonic() - began < 20


class Skipping(Clock):
    """Waits without waiting: on a busy machine a second of a test may be ten."""

    def __init__(self) -> None:
        self._skipped = 0.0

    def boot(self) -> float:
        return super().boot() + self._skipped

    def wall(self) -> float:
        return super().wall() + self._skipped

    def sleep(self, seconds: float) -> None:
        self._skipped += seconds


def test_one_that_is_silent_is_taken_over_and_notices(
    objects: Objects, elsewhere: Callable[[str], None]
) -> None:
    here, there = Skipping(), Skipping()
    first = Lease(objects, interval=1000, timeout=300, clock=here)
    with first:
        elsewhere("another")
        with Lease(objects, interval=1000, timeout=300, clock=there) as second:
            here.sleep(160)  # half of stale: it makes sure before it writes
            with pytest.raises(RunFolderError, match="took over"):
                first.ensure_held()
            second.ensure_held()
            with pytest.raises(RunFolderError, match="took over"):
                first.ensure_held()
    assert leases(objects) == []


def test_one_that_cannot_reach_the_store_for_long_does_not_write(
    objects: Objects, failing: Callable[[Objects], Failing]
) -> None:
    clock = Skipping()
    with Lease(objects, interval=1000, timeout=300, clock=clock) as held:
        between = failing(objects)
        between.error, between.left = OSError("AWS Error NETWORK_CONNECTION"), 99
        held.ensure_held()  # it is not that long
        clock.sleep(160)
        with pytest.raises(StorageError):
            held.ensure_held()
        between.error = None
        held.ensure_held()


def test_of_many_at_once_one_has_it(objects: Objects, elsewhere: Callable[[str], None]) -> None:
    inside, most, errors = [0], [0], []
    lock = threading.Lock()

    def want(number: int) -> None:
        try:
            with Lease(objects, interval=0.2, timeout=30):
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                time.sleep(1)
                with lock:
                    inside[0] -= 1
        except RunFolderError as error:
            errors.append(error)

    threads = [threading.Thread(target=want, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and len(errors) <= 3 and leases(objects) == []


def _hold(url: str, ready: multiprocessing.synchronize.Event) -> None:
    with Lease(objects_at(url)):
        ready.set()
        time.sleep(60)


def test_one_that_was_killed_on_this_machine_is_known_to_be_gone_at_once(s3: str) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    owner = context.Process(target=_hold, args=(f"{s3}/run", ready))
    owner.start()
    assert ready.wait(60)
    with pytest.raises(RunFolderError, match=f"process {owner.pid} on"):
        Lease(objects_at(f"{s3}/run")).__enter__()
    owner.kill()
    owner.join()
    began = time.monotonic()
    with Lease(objects_at(f"{s3}/run")):
        assert time.monotonic() - began < 10


class Jumping(Clock):
    """Clocks that are set ahead by hand."""

    def __init__(self) -> None:
        self.boot_ahead = self.wall_ahead = 0.0

    def boot(self) -> float:
        return super().boot() + self.boot_ahead

    def wall(self) -> float:
        return super().wall() + self.wall_ahead


def there_and_here() -> tuple[Process, Process]:
    return Process("there", "b1", "there pids", 1, 0.0), Process("here", "b2", "here pids", 1, 0.0)


@pytest.mark.parametrize("jump", ["boot_ahead", "wall_ahead"])
def test_after_a_suspension_the_run_is_claimed_anew_before_anything_is_written(
    objects: Objects, jump: str
) -> None:
    clock = Jumping()
    with Lease(objects, interval=1000, clock=clock) as lease:
        before = leases(objects)
        lease.ensure_held()
        assert leases(objects) == before, "nothing is asked while the last renewal is young"
        setattr(clock, jump, 41.0)
        lease.ensure_held()
        assert len(leases(objects)) == 1 and leases(objects) != before
    assert leases(objects) == []


def test_one_that_slept_through_another_drivers_whole_work_has_lost_the_run(objects: Objects) -> None:
    clock = Jumping()
    there, here = there_and_here()
    with Lease(objects, interval=1000, clock=clock, process=there) as lease:
        objects.delete(leases(objects)[0])  # as who takes a silent one over does
        with Lease(objects, process=here):
            pass
        clock.boot_ahead = 3600.0
        with pytest.raises(RunFolderError, match="took over"):
            lease.ensure_held()


def test_a_clock_that_is_ahead_takes_no_living_run(objects: Objects) -> None:
    there, here = there_and_here()
    ahead = Jumping()
    ahead.wall_ahead = 7200.0
    working = pytest.raises(RunFolderError, match="process 1 on there")
    with Lease(objects, interval=0.2, timeout=30, process=there), working:
        Lease(objects, interval=0.3, timeout=30, clock=ahead, process=here).__enter__()


@pytest.mark.parametrize("after", ["the look", "a wait"])
def test_a_watcher_that_was_suspended_looks_again_before_it_takes_over(objects: Objects, after: str) -> None:
    there, here = there_and_here()
    looks = [0]

    class Watching(Jumping):
        """It is suspended after its second look, or in its first wait; the other one goes on
        meanwhile."""

        def sleep(self, seconds: float) -> None:
            if after == "a wait":
                self.suspend()

        def suspend(self) -> None:
            if not self.boot_ahead:
                self.boot_ahead = 3600.0
                other.heartbeat()

    class Looked(Objects):
        def get(self, name: str) -> bytes:
            content = super().get(name)
            looks[0] += "/by-" in name
            if after == "the look" and looks[0] == 2:
                clock.suspend()
            return content

    clock = Watching()
    watched = Looked(objects._fs, objects._root, objects.url)
    working = pytest.raises(RunFolderError, match="process 1 on there")
    with Lease(objects, interval=1000, process=there) as other, working:
        Lease(watched, clock=clock, process=here).__enter__()


def test_every_attempt_to_write_asks_the_lease(
    objects: Objects, failing: Callable[[Objects], Failing]
) -> None:
    with Lease(objects, timeout=3) as lease:
        between = failing(objects)
        between.error, between.left, between.matching = OSError("no answer"), 1, "table"
        between.on_failure = lambda: setattr(lease, "_lost", True)
        with pytest.raises(RunFolderError, match="took over"):
            objects.guarded(lease).put("table", b"1")
        for write in (
            lambda: objects.guarded(lease).delete("table"),
            lambda: objects.guarded(lease).delete_folder(),
        ):
            with pytest.raises(RunFolderError, match="took over"):
                write()
    assert not objects.exists("table")


def test_a_run_with_an_unanswered_write_is_given_back_later(
    objects: Objects, failing: Callable[[Objects], Failing]
) -> None:
    class Waiting(Jumping):
        def sleep(self, seconds: float) -> None:
            assert len(leases(objects)) == 1, "nobody else gets it meanwhile"
            self.boot_ahead += seconds

    clock = Waiting()
    with Lease(objects, clock=clock) as lease:
        between = failing(objects)
        between.error, between.left, between.matching = OSError("no answer"), 9, "table"
        with pytest.raises(StorageError):
            objects.guarded(lease).put("table", b"1")
        assert clock.boot_ahead == 0
    assert 30 < clock.boot_ahead <= 41 and leases(objects) == []


def test_a_damaged_lease_is_said(objects: Objects) -> None:
    objects.put(f"{LEASES}/by-x", b"{")
    with pytest.raises(StorageError, match="a lease is damaged"):
        Lease(objects).__enter__()


def test_a_lease_names_no_person() -> None:
    said = json.loads(Owner("x", Process.this(), 1, 0.0).content())
    assert said.keys() == {
        "format", "host", "boot", "machine", "pid", "started", "heartbeat", "written",
    }  # fmt: skip
