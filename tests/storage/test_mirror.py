"""A mirror is read and written as the run folder; what counts is at the URL."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from milp_ray.errors import RunFolderError, StorageError
from milp_ray.search.core.events import EventLog
from milp_ray.storage import (
    close_mirrors,
    get_file,
    local_copy,
    mirror_at,
    names_in,
    pull,
    put_file,
    remove_file,
    remove_folder,
    shown,
    write_folder,
    write_json,
)
from milp_ray.storage import mirror as mirror_module
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


@pytest.fixture
def other_machine(url: str, tmp_path: Path) -> Iterator[Mirror]:
    """A mirror of the same URL elsewhere."""
    mirror = Mirror(url, objects_at(url), tmp_path / "elsewhere")
    yield mirror
    mirror.close()


def test_a_file_is_at_the_url_when_the_call_returns(url: str, other_machine: Mirror) -> None:
    root = mirror_at(url).root
    write_json(root / "scores" / "u-a.json", {"a": 1})
    assert objects_at(url).get("scores/u-a.json") == b'{\n "a": 1\n}'
    other_machine.pull(EVERY)
    assert (other_machine.root / "scores" / "u-a.json").read_bytes() == b'{\n "a": 1\n}'
    assert shown(root / "scores" / "u-a.json") == f"{url}/scores/u-a.json" and shown(root) == url
    remove_file(root / "scores" / "u-a.json")
    remove_file(root / "scores" / "u-a.json")
    assert objects_at(url).list_below() == [] and not (root / "scores" / "u-a.json").exists()


def test_a_put_that_fails_leaves_the_old_file_at_both_ends(
    url: str, failing: Callable[[Objects], Failing]
) -> None:
    mirror = mirror_at(url)
    path = mirror.root / "scores" / "u-a.json"
    write_json(path, {"a": 1})
    between = failing(mirror.objects)
    between.error, between.left = OSError("AWS Error NETWORK_CONNECTION"), 99
    with pytest.raises(StorageError, match="NETWORK_CONNECTION"):
        write_json(path, {"a": 2})
    between.error = None
    assert path.read_text() == '{\n "a": 1\n}' and get_file(path) == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["u-a.json"]


def adapter(draft: Path, weights: bytes = b"w") -> None:
    (draft / "adapter_config.json").write_bytes(b"{}")
    (draft / "adapter_model.safetensors").write_bytes(weights)


def test_a_folder_of_one_process_is_read_in_another(url: str, other_machine: Mirror) -> None:
    folder = mirror_at(url).root / "memories" / "u-a"
    write_folder(folder, adapter, commit_marker="adapter_config.json")
    assert names_in(folder.parent) == {"u-a"} and names_in(folder) == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert not folder.exists(), "a worker's disk would fill with what it has written"
    with other_machine.local_copy(other_machine.root / "memories" / "u-a") as copy:
        assert copy.name == "u-a" and (copy / "adapter_model.safetensors").read_bytes() == b"w"
    assert not copy.exists()
    with local_copy(folder.parent / "u-b") as copy:
        assert not copy.exists()
    write_folder(folder, lambda draft: (draft / "adapter_config.json").write_bytes(b"new"))
    assert names_in(folder) == {"adapter_config.json"}


def test_a_folder_without_its_last_file_is_none_whenever_it_fails(
    url: str, failing: Callable[[Objects], Failing]
) -> None:
    mirror = mirror_at(url)
    folder = mirror.root / "memories" / "u-a"
    between = failing(mirror.objects)
    for file in ("adapter_config", "adapter_model"):
        write_folder(folder, adapter, commit_marker="adapter_config.json")
        between.error, between.left, between.matching = OSError("AWS Error INTERNAL"), 99, file
        with pytest.raises(StorageError):
            write_folder(folder, lambda draft: adapter(draft, b"new"), commit_marker="adapter_config.json")
        between.error = None
        assert "adapter_config.json" not in names_in(folder)
        pull(folder.parent, "*/adapter_config.json")
        assert not (folder / "adapter_config.json").exists()
    remove_folder(folder, commit_marker="adapter_config.json")
    assert names_in(folder) == set()


def test_what_others_wrote_is_seen_on_request(url: str, other_machine: Mirror) -> None:
    root = mirror_at(url).root
    other_machine.objects.put("scores/u-a.json", b"{}")
    other_machine.objects.put("memories/u-a/adapter_config.json", b"{}")
    other_machine.objects.put("memories/u-a/adapter_model.safetensors", b"large")
    pull(root / "scores", "*.json")
    pull(root / "memories", "*/adapter_config.json")
    assert (root / "scores" / "u-a.json").exists()
    assert [p.name for p in (root / "memories" / "u-a").iterdir()] == ["adapter_config.json"]


def test_only_plain_names_go_out_and_come_in(url: str) -> None:
    mirror = mirror_at(url)
    for name in ("alice@example.org", "a b", "-x", "é"):
        with pytest.raises(StorageError, match="not a plain file name"):
            write_json(mirror.root / "scores" / name, {})
    assert mirror.objects.list_below() == []
    mirror.objects.put("scores/a b.json", b"{}")
    mirror.objects.put("scores/fine.json", b"{}")
    mirror.pull(EVERY)
    assert [p.name for p in (mirror.root / "scores").iterdir()] == ["fine.json"]


@pytest.mark.parametrize("name", ["events/../../../../evil", "/etc/passwd", "a//b", "..", ".x", "a/-rf", ""])
def test_a_bucket_cannot_write_outside_the_mirror(name: str) -> None:
    assert not mirror_module._is_plain(name)


def test_a_mirror_is_private_and_goes_with_its_process(url: str, tmp_path: Path) -> None:
    mirror = mirror_at(url)
    assert mirror.folder.stat().st_mode & 0o077 == 0 and mirror.folder.parent.stat().st_mode & 0o077 == 0
    close_mirrors()
    assert not list((tmp_path / "cache" / "twins").iterdir())
    (tmp_path / "cache" / "twins").chmod(0o755)
    with pytest.raises(StorageError, match="not private"):
        mirror_at(url)


def _use(path: Path) -> None:
    assert get_file(path / "a.json") == b"{}"
    put_file(path / "b.json", b"from the other process")


def test_a_path_sent_to_another_process_is_the_same_place(s3: str) -> None:
    root = mirror_at(f"{s3}/run").root
    write_json(root / "tables" / "a.json", {})
    assert pickle.loads(pickle.dumps(root / "tables")) == root / "tables"
    assert pickle.loads(pickle.dumps(root)) == root
    process = multiprocessing.get_context("spawn").Process(target=_use, args=(root / "tables",))
    process.start()
    process.join()
    assert process.exitcode == 0 and not (root / "tables" / "b.json").exists()
    assert get_file(root / "tables" / "b.json") == b"from the other process"


def test_a_log_follows_within_a_second_and_is_whole_at_the_end(url: str, other_machine: Mirror) -> None:
    mirror = mirror_at(url)
    with mirror.driving(EVERY):
        log = EventLog(mirror.root / "events" / "u-a.jsonl")
        log.append({"event": "created"})
        eventually(lambda: mirror.objects.exists("events/u-a.jsonl"))
        for number in range(200):
            log.append({"event": "told", "id": number})
        assert events_of(other_machine.objects.get("events/u-a.jsonl")) < 201, "each line was put by itself"
        eventually(lambda: events_of(mirror.objects.get("events/u-a.jsonl")) == 201, seconds=3)
        log.append({"event": "last"})
    with other_machine.driving(EVERY):
        mine = (other_machine.root / "events" / "u-a.jsonl").read_bytes()
    assert mine == (mirror.root / "events" / "u-a.jsonl").read_bytes() and events_of(mine) == 202


def test_two_drivers_one_after_the_other_on_two_machines(url: str, other_machine: Mirror) -> None:
    mirror = mirror_at(url)
    for number, driver in enumerate([mirror, other_machine, mirror, other_machine]):
        with driver.driving(EVERY):
            log = EventLog(driver.root / "events" / "u-a.jsonl")
            assert len(log.events) == number
            if driver is mirror:
                log.append({"event": "x", "number": number})
            else:
                path = driver.root / "events" / "u-a.jsonl"
                path.write_bytes(path.read_bytes() + b'{"event":"x"}\n')
                assert driver.growing() is not None
                driver.growing().mark(path)  # type: ignore[union-attr]
    assert events_of(mirror.objects.get("events/u-a.jsonl")) == 4


def test_a_store_that_fails_ends_the_driver_and_a_later_one_has_all_lines(
    url: str, failing: Callable[[Objects], Failing]
) -> None:
    mirror = mirror_at(url)
    between = failing(mirror.objects)
    lease = Lease(mirror.objects, timeout=3)
    with pytest.raises(StorageError, match="QUOTA"), mirror.driving(EVERY, lease=lease):
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
    with again.driving(EVERY):
        assert EventLog(again.root / "events" / "u-a.jsonl").events == written
    assert events_of(again.objects.get("events/u-a.jsonl")) == len(written) > 1
    close_mirrors()
    assert not list(again.folder.parent.iterdir()), "what was brought to the URL is not kept here"


_KILLED = """
import os, signal, sys
from milp_ray.search.core.events import EventLog
from milp_ray.storage import FileSet, mirror, mirror_at
uploader = mirror.LogUploader
mirror.LogUploader = lambda upload: uploader(upload, 1000.0)  # no round of its own in this test
here = mirror_at(sys.argv[1])
with here.driving(FileSet(("alias.key",), {"events": "*"})):
    log = EventLog(here.root / "events" / "u-a.jsonl")
    log.append({"event": "told", "id": 0})
    here._uploader.close()
    here._uploader = uploader(here._upload_log, 1000.0)
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
    with mirror.driving(EVERY):
        assert [e["id"] for e in EventLog(mirror.root / "events" / "u-a.jsonl").events] == [0, 1, 2]
    assert events_of(mirror.objects.get("events/u-a.jsonl")) == 3
    assert list((tmp_path / "cache" / "twins").iterdir()) == [mirror.folder]


@pytest.mark.parametrize("there", [b'{"event":"another"}\n', b'{"event":"told","id":0}\n' * 9])
def test_what_a_killed_driver_left_does_not_undo_what_came_after(s3: str, there: bytes) -> None:
    url = f"{s3}/run"
    kill_a_driver(url)
    objects_at(url).put("events/u-a.jsonl", there)  # by a driver on another machine
    mirror = mirror_at(url)
    with mirror.driving(EVERY):
        assert (mirror.root / "events" / "u-a.jsonl").read_bytes() == there
    assert mirror.objects.get("events/u-a.jsonl") == there


def test_what_a_killed_driver_left_of_another_run_of_the_name_is_dropped(s3: str) -> None:
    url = f"{s3}/run"
    kill_a_driver(url)
    objects_at(url).put("alias.key", b"of another run")
    mirror = mirror_at(url)
    with mirror.driving(EVERY):
        assert events_of((mirror.root / "events" / "u-a.jsonl").read_bytes()) == 1


def test_a_user_who_was_forgotten_meanwhile_does_not_come_back(s3: str) -> None:
    url = f"{s3}/run"
    kill_a_driver(url)
    objects_at(url).delete("events/u-a.jsonl")  # on another machine
    mirror = mirror_at(url)
    with mirror.driving(EVERY):
        assert not (mirror.root / "events" / "u-a.jsonl").exists()
    assert not mirror.objects.exists("events/u-a.jsonl")


def test_a_driver_that_was_taken_over_writes_nothing_more(url: str, other_machine: Mirror) -> None:
    mirror = mirror_at(url)
    lost = Lease(mirror.objects, interval=1000, timeout=3)
    with pytest.raises(RunFolderError, match="took over"), mirror.driving(EVERY, lease=lost):
        log = EventLog(mirror.root / "events" / "u-a.jsonl")
        log.append({"event": "created"})
        eventually(lambda: mirror.objects.exists("events/u-a.jsonl"))
        for found in mirror.objects.list_below("lease"):
            mirror.objects.delete(found.name)  # as somebody does who thinks that it is gone
        with other_machine.driving(EVERY):
            time.sleep(1.1)  # its last renewal is too old now
            log.append({"event": "told"})
            eventually(lambda: mirror._uploader is not None and mirror._uploader._error is not None)
            with pytest.raises(RunFolderError):
                write_json(mirror.root / "tables" / "x.json", {})
        log.append({"event": "never"})
    assert events_of(mirror.objects.get("events/u-a.jsonl")) == 1
    assert not mirror.objects.exists("tables/x.json")


def test_mirrors_of_killed_workers_are_cleaned_up(s3: str, tmp_path: Path) -> None:
    made = "import os, sys; from milp_ray.storage import mirror_at; mirror_at(sys.argv[1])"
    code = f"{made}; os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, f"{s3}/run"], check=False)
    left = list((tmp_path / "cache" / "twins").iterdir())
    assert len(left) == 1
    assert mirror_at(f"{s3}/other").folder not in left and not left[0].exists()
