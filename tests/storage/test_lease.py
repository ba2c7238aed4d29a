"""One holder at a time, on every kind of store, whoever dies and whoever comes at the same moment."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable

import pytest

from milp_ray.errors import RunFolderError, StorageError
from milp_ray.storage import lease as lease_module
from milp_ray.storage.lease import FOLDER, Lease
from milp_ray.storage.objects import Objects, objects_at
from tests.storage.conftest import Failing


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this process look like one of another machine from now on."""
    return lambda name: monkeypatch.setattr(lease_module, "_machine", lambda: name)


def leases(objects: Objects) -> list[str]:
    return [found.name for found in objects.found(FOLDER)]


def test_a_second_holder_is_refused_and_told_who_has_it(objects: Objects) -> None:
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
    with Lease(objects, beat=0.3, stale=60):
        elsewhere("another")
        began = time.monotonic()
        with pytest.raises(RunFolderError, match="another milp-ray"):
            Lease(objects, beat=0.3, stale=60).__enter__()
        assert time.monotonic() - began < 20


def test_one_that_is_silent_is_taken_over_and_notices(
    objects: Objects, elsewhere: Callable[[str], None]
) -> None:
    first = Lease(objects, beat=1000, stale=3)
    with first:
        elsewhere("another")
        with Lease(objects, beat=1000, stale=3) as second:
            time.sleep(1.6)  # half of stale: it makes sure before it writes
            with pytest.raises(RunFolderError, match="took over"):
                first.hold()
            second.hold()
            with pytest.raises(RunFolderError, match="took over"):
                first.hold()
    assert leases(objects) == []


def test_one_that_cannot_reach_the_store_for_long_does_not_write(
    objects: Objects, failing: Callable[[Objects], Failing]
) -> None:
    with Lease(objects, beat=1000, stale=0.4) as held:
        between = failing(objects)
        between.error, between.left = OSError("AWS Error NETWORK_CONNECTION"), 99
        held.hold()  # it is not that long
        time.sleep(0.3)
        with pytest.raises(StorageError):
            held.hold()
        between.error = None
        held.hold()


def test_of_many_at_once_one_has_it(objects: Objects, elsewhere: Callable[[str], None]) -> None:
    inside, most, errors = [0], [0], []
    lock = threading.Lock()

    def want(number: int) -> None:
        try:
            with Lease(objects, beat=0.2, stale=30):
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
    holder = context.Process(target=_hold, args=(f"{s3}/run", ready))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(RunFolderError, match=f"process {holder.pid} on"):
        Lease(objects_at(f"{s3}/run")).__enter__()
    holder.kill()
    holder.join()
    began = time.monotonic()
    with Lease(objects_at(f"{s3}/run")):
        assert time.monotonic() - began < 10


def test_a_damaged_lease_is_said(objects: Objects) -> None:
    objects.put(f"{FOLDER}/by-x", b"{")
    with pytest.raises(StorageError, match="a lease is damaged"):
        Lease(objects).__enter__()


def test_a_lease_names_no_person() -> None:
    assert {"host", "machine", "pid", "started", "beat", "written"} == lease_module._KEYS
