"""One driver in a folder, whether the kernel's lock reaches other machines, does not, or is not
there."""

from __future__ import annotations

import errno
import fcntl
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from milp_ray.errors import RunBusyError, StorageError
from milp_ray.search.core.events import EventLog
from milp_ray.storage import folder_lock as module
from milp_ray.storage import put_file, remove_file, remove_folder, write_folder, write_json
from milp_ray.storage.clock import Clock
from milp_ray.storage.folder_lock import folder_lock
from milp_ray.storage.lease import Lease
from milp_ray.storage.objects import Objects
from milp_ray.storage.owner import Process
from tests.storage.conftest import Failing


def lease_on(machine: str, **words: float) -> Callable[[Objects, bool], Lease]:
    """A lease as a process of that machine takes it."""
    process = Process(machine, f"boot-{machine}", f"{machine} pids", 1, 0.0)
    return lambda objects, locked: Lease(objects, process=process, kernel_lock=locked, **words)  # type: ignore[arg-type]


@pytest.fixture
def locks_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of other machines are not seen, as on NFS mounted with ``local_lock``."""
    monkeypatch.setattr(module, "_locked", lambda file, root: True)


def test_a_second_driver_of_this_machine_is_refused_at_once(tmp_path: Path) -> None:
    working = pytest.raises(RunBusyError, match="another milp-ray is working")
    with folder_lock(tmp_path), working, folder_lock(tmp_path):
        pass
    with folder_lock(tmp_path):
        pass


def test_an_empty_lock_file_of_an_earlier_version_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    with folder_lock(tmp_path):
        pass
    with (tmp_path / "lock").open("a+b") as earlier:
        fcntl.flock(earlier, fcntl.LOCK_EX)
        with pytest.raises(RunBusyError), folder_lock(tmp_path):
            pass


def test_a_driver_of_another_machine_whose_heartbeat_moves_is_not_taken_over(
    tmp_path: Path, locks_stay_here: None
) -> None:
    there, here = lease_on("there", interval=0.2, timeout=60), lease_on("here", interval=0.3, timeout=60)
    working = pytest.raises(RunBusyError, match="process 1 on there")
    with folder_lock(tmp_path, lease=there), working, folder_lock(tmp_path, lease=here):
        pass


def test_a_silent_driver_is_taken_over_and_writes_nothing_more(tmp_path: Path, locks_stay_here: None) -> None:
    mount = tmp_path / "mount"
    (tmp_path / "run").mkdir()
    mount.symlink_to(tmp_path / "run")  # the same folder under another name, as another machine has it
    with folder_lock(mount, lease=lease_on("there", interval=1000, timeout=1.5)):
        log = EventLog(mount / "events" / "u-a.jsonl")
        log.append({"event": "created"})
        write_json(mount / "scores" / "u-a.json", {"a": 1})
        with folder_lock(tmp_path / "run", lease=lease_on("here", interval=1000, timeout=1.5)):
            for write in (
                lambda: log.append({"event": "told"}),
                lambda: EventLog(mount / "events" / "u-a.jsonl"),
                lambda: write_json(mount / "scores" / "u-a.json", {"a": 2}),
                lambda: write_folder(mount / "memories" / "u-a", lambda draft: None),
                lambda: put_file(mount / "scores" / "u-a.json", b""),
                lambda: remove_file(mount / "scores" / "u-a.json"),
                lambda: remove_folder(mount / "scores"),
            ):
                with pytest.raises(RunBusyError, match="took over"):
                    write()
            write_json(tmp_path / "run" / "scores" / "u-b.json", {})
    there = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*.json*")}
    assert there == {"events/u-a.jsonl", "scores/u-a.json", "scores/u-b.json"}
    assert (tmp_path / "run" / "scores" / "u-a.json").read_text() == '{\n "a": 1\n}'


def test_a_driver_killed_in_another_container_of_this_machine_is_known_by_the_lock(tmp_path: Path) -> None:
    class Impatient(Clock):
        def sleep(self, seconds: float) -> None:
            raise AssertionError("it waits for a driver that is gone")

    process = Process("container", "boot", "container boot pids", 1, 0.0)
    left = Lease(module.folder_objects(tmp_path), process=process, background=False)
    left.__enter__()  # and never given back
    mine = Process("another", "boot", "another boot pids", 1, 0.0)

    def lease(objects: Objects, locked: bool) -> Lease:
        return Lease(objects, process=mine, kernel_lock=locked, clock=Impatient())

    with folder_lock(tmp_path, lease=lease):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_the_heartbeat_alone_tells(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(file: object, kind: int) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    working = pytest.raises(RunBusyError, match="another milp-ray")
    with caplog.at_level(logging.WARNING), folder_lock(tmp_path), working, folder_lock(tmp_path):
        pass
    assert "has no locks" in caplog.text
    with folder_lock(tmp_path):
        pass


def test_without_locks_one_of_many_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_locked", lambda file, root: False)
    inside, most, refused = [0], [0], []

    def want(number: int) -> None:
        try:
            with folder_lock(tmp_path / ".", lease=lease_on(f"m{number}", interval=0.2, timeout=30)):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.7)
                inside[0] -= 1
        except RunBusyError as error:
            refused.append(error)

    threads = [threading.Thread(target=want, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and len(refused) <= 3


def test_a_full_disk_is_said_as_one(tmp_path: Path, failing: Callable[[Objects], Failing]) -> None:
    def full(objects: Objects, locked: bool) -> Lease:
        between = failing(objects)
        between.error, between.left = OSError(errno.ENOSPC, "Error writing"), 99
        return Lease(objects)

    with pytest.raises(StorageError) as raised, folder_lock(tmp_path, lease=full):
        pass
    assert "No space left on device" in str(raised.value) and "free some space" in str(raised.value)
