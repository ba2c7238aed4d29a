"""The driver of a run at a URL uploads every log, and a later one misses nothing, whatever ended
it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from milp_ray.errors import RunFolderError, StorageError
from milp_ray.search.core.events import EventLog
from milp_ray.storage import close_mirrors, driving, mirror_at, write_json
from milp_ray.storage.file_set import FileSet
from milp_ray.storage.lease import Lease
from milp_ray.storage.mirror import Mirror
from milp_ray.storage.objects import Objects, objects_at
from tests.storage.conftest import Failing

EVERY = FileSet(("run.json", "alias.key"), {"events": "*", "scores": "*", "tables": "*"})


def events_of(log: bytes) -> int:
    return log.count(b"\n")


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_a_log_follows_within_a_second_and_is_whole_at_the_end(url: str, other_machine: Mirror) -> None:
    mirror = mirror_at(url)
    with driving(mirror, EVERY):
        log = EventLog(mirror.root / "events" / "u-a.jsonl")
        log.append({"event": "created"})
        eventually(lambda: mirror.objects.exists("events/u-a.jsonl"))
        for number in range(200):
            log.append({"event": "told", "id": number})
        assert events_of(other_machine.objects.get("events/u-a.jsonl")) < 201, "each line was put by itself"
        eventually(lambda: events_of(mirror.objects.get("events/u-a.jsonl")) == 201, seconds=3)
        log.append({"event": "last"})
    with driving(other_machine, EVERY):
        mine = (other_machine.root / "events" / "u-a.jsonl").read_bytes()
    assert mine == (mirror.root / "events" / "u-a.jsonl").read_bytes() and events_of(mine) == 202


def test_two_drivers_one_after_the_other_on_two_machines(url: str, other_machine: Mirror) -> None:
    mirror = mirror_at(url)
    for number, driver in enumerate([mirror, other_machine, mirror, other_machine]):
        with driving(driver, EVERY):
            log = EventLog(driver.root / "events" / "u-a.jsonl")
            assert len(log.events) == number
            if driver is mirror:
                log.append({"event": "x", "number": number})
            else:
                path = driver.root / "events" / "u-a.jsonl"
                path.write_bytes(path.read_bytes() + b'{"event":"x"}\n')
                assert driver.appending() is not None
                driver.appending().mark(path)  # type: ignore[union-attr]
    assert events_of(mirror.objects.get("events/u-a.jsonl")) == 4


def test_a_store_that_fails_ends_the_driver_and_a_later_one_has_all_lines(
    url: str, failing: Callable[[Objects], Failing]
) -> None:
    mirror = mirror_at(url)
    between = failing(mirror.objects)
    lease = Lease(mirror.objects, timeout=3)
    with pytest.raises(StorageError, match="QUOTA"), driving(mirror, EVERY, lease=lease):
        log = EventLog(mirror.root / "events" / "u-a.jsonl")
        log.append({"event": "created"})
        eventually(lambda: mirror.objects.exists("events/u-a.jsonl"))
        between.error, between.left, between.matching = OSError("AWS Error QUOTA"), 10**6, "events"
        log.append({"event": "told"})

        def refused() -> bool:
            before = (mirror.root / "events" / "u-a.jsonl").read_bytes()
            try:
                log.append({"event": "more"})
            except StorageError:
                return (mirror.root / "events" / "u-a.jsonl").read_bytes() == before
            return False

        eventually(refused)
        log.append({"event": "never"})
    written = log.events
    between.error = None
    assert events_of(mirror.objects.get("events/u-a.jsonl")) == 1
    close_mirrors()
    again = mirror_at(url)
    with driving(again, EVERY):
        assert EventLog(again.root / "events" / "u-a.jsonl").events == written
    assert events_of(again.objects.get("events/u-a.jsonl")) == len(written) > 1
    close_mirrors()
    assert not list(again.folder.parent.iterdir()), "what was brought to the URL is not kept here"


_KILLED = """
import os, signal, sys
from milp_ray.search.core.events import EventLog
from milp_ray.storage import FileSet, driving, mirror_at, url_driver
uploader = url_driver.LogUploader
url_driver.LogUploader = lambda upload: uploader(upload, 1000.0)  # no round of its own in this test
here = mirror_at(sys.argv[1])
with driving(here, FileSet(("alias.key",), {"events": "*"})):
    log = EventLog(here.root / "events" / "u-a.jsonl")
    log.append({"event": "told", "id": 0})
    here.uploader.close()
    here.uploader = uploader(lambda path: url_driver.upload_log(here, path), 1000.0)
    for number in (1, 2):
        log.append({"event": "told", "id": number})
    with (here.root / "events" / "u-a.jsonl").open("ab") as file:
        file.write(b'{"event":"torn')
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_a_driver(url: str) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, url], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_driver_loses_nothing_that_this_machine_has(s3: str, tmp_path: Path) -> None:
    url = f"{s3}/run"
    kill_a_driver(url)
    assert events_of(objects_at(url).get("events/u-a.jsonl")) == 1
    mirror = mirror_at(url)
    assert len(list((tmp_path / "cache" / "twins").iterdir())) == 2, "it was cleaned up"
    with driving(mirror, EVERY):
        assert [e["id"] for e in EventLog(mirror.root / "events" / "u-a.jsonl").events] == [0, 1, 2]
    assert events_of(mirror.objects.get("events/u-a.jsonl")) == 3
    assert list((tmp_path / "cache" / "twins").iterdir()) == [mirror.folder]


@pytest.mark.parametrize("there", [b'{"event":"another"}\n', b'{"event":"told","id":0}\n' * 9])
def test_what_a_killed_driver_left_does_not_undo_what_came_after(s3: str, there: bytes) -> None:
    url = f"{s3}/run"
    kill_a_driver(url)
    objects_at(url).put("events/u-a.jsonl", there)  # by a driver on another machine
    mirror = mirror_at(url)
    with driving(mirror, EVERY):
        assert (mirror.root / "events" / "u-a.jsonl").read_bytes() == there
    assert mirror.objects.get("events/u-a.jsonl") == there


def test_what_a_killed_driver_left_of_another_run_of_the_name_is_dropped(s3: str) -> None:
    url = f"{s3}/run"
    kill_a_driver(url)
    objects_at(url).put("alias.key", b"of another run")
    mirror = mirror_at(url)
    with driving(mirror, EVERY):
        assert events_of((mirror.root / "events" / "u-a.jsonl").read_bytes()) == 1


def test_a_user_who_was_forgotten_meanwhile_does_not_come_back(s3: str) -> None:
    url = f"{s3}/run"
    kill_a_driver(url)
    objects_at(url).delete("events/u-a.jsonl")  # on another machine
    mirror = mirror_at(url)
    with driving(mirror, EVERY):
        assert not (mirror.root / "events" / "u-a.jsonl").exists()
    assert not mirror.objects.exists("events/u-a.jsonl")


def test_a_driver_that_was_taken_over_writes_nothing_more(url: str, other_machine: Mirror) -> None:
    mirror = mirror_at(url)
    lost = Lease(mirror.objects, interval=1000, timeout=3)
    with pytest.raises(RunFolderError, match="took over"), driving(mirror, EVERY, lease=lost):
        log = EventLog(mirror.root / "events" / "u-a.jsonl")
        log.append({"event": "created"})
        eventually(lambda: mirror.objects.exists("events/u-a.jsonl"))
        for found in mirror.objects.list_below("lease"):
            mirror.objects.delete(found.name)  # as somebody does who thinks that it is gone
        with driving(other_machine, EVERY):
            time.sleep(1.1)  # its last renewal is too old now
            log.append({"event": "told"})
            eventually(lambda: mirror.uploader is not None and mirror.uploader._error is not None)
            with pytest.raises(RunFolderError):
                write_json(mirror.root / "tables" / "x.json", {})
        log.append({"event": "never"})
    assert events_of(mirror.objects.get("events/u-a.jsonl")) == 1
    assert not mirror.objects.exists("tables/x.json")
