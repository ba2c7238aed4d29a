"""Programs that clean temporary folders take nothing of a run, and what they do take ends the run
clearly."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from milp_ray.errors import StorageError
from milp_ray.search.core.events import EventLog
from milp_ray.storage import (
    check_intact,
    driving,
    local_copy,
    mirror_at,
    pull,
    remove_file,
    write_folder,
    write_json,
)
from milp_ray.storage.file_set import FileSet
from milp_ray.storage.lock_file import LockFile
from milp_ray.storage.mirror import Mirror
from milp_ray.storage.url_driver import upload_log

EVERY = FileSet(("run.json",), {"events": "*", "scores": "*", "memories": "*/adapter_config.json"})
LINES = b'{"event":"created"}\n{"event":"asked"}\n{"event":"told"}\n'
BY_ANOTHER = "removed or cut short by another program"


@pytest.fixture
def mirror(own_mirrors: None, url_of: Callable[[str], str]) -> Mirror:
    """A run whose one user is done, as a driver gets it."""
    mirror = mirror_at(url_of("memory"))
    mirror.objects.put("events/u-a.jsonl", LINES)
    mirror.objects.put("scores/u-a.json", b"{}")
    return mirror


def log_of(mirror: Mirror) -> Path:
    return mirror.root / "events" / "u-a.jsonl"


def cut(path: Path) -> None:
    path.write_bytes(LINES[: LINES.find(b"\n") + 1])


def replace(path: Path) -> None:
    path.write_bytes(b'{"event":"created"}\n' * 9)


@pytest.mark.parametrize("harm", [Path.unlink, cut, replace])
def test_a_finished_log_is_neither_begun_anew_nor_overwritten_at_the_url(
    mirror: Mirror, harm: Callable[[Path], None]
) -> None:
    with pytest.raises(StorageError, match=BY_ANOTHER), driving(mirror, EVERY):
        harm(log_of(mirror))
        EventLog(log_of(mirror)).append({"event": "created"})
    assert mirror.objects.get("events/u-a.jsonl") == LINES


@pytest.mark.parametrize("harm", [Path.unlink, cut, replace])
def test_a_log_that_is_harmed_while_it_grows_ends_the_run_with_all_that_was_brought_to_the_url(
    mirror: Mirror, harm: Callable[[Path], None]
) -> None:
    with pytest.raises(StorageError) as caught, driving(mirror, EVERY):
        log = EventLog(log_of(mirror))
        log.append({"event": "asked"})
        upload_log(mirror, log_of(mirror))
        harm(log_of(mirror))
        with pytest.raises(StorageError):
            log.append({"event": "told"})
        mirror.uploader.mark(log_of(mirror))  # type: ignore[union-attr]
    assert BY_ANOTHER in str(caught.value) and "resume" in str(caught.value)
    assert mirror.objects.get("events/u-a.jsonl") == LINES + b'{"event":"asked"}\n'


def test_scores_that_vanish_are_not_taken_for_a_test_that_is_missing(mirror: Mirror) -> None:
    with driving(mirror, EVERY):
        check_intact(mirror.root)
        write_json(mirror.root / "scores" / "u-b.json", {})
        remove_file(mirror.root / "scores" / "u-b.json")
        check_intact(mirror.root)
        (mirror.root / "scores" / "u-a.json").unlink()
        for look_again in (lambda: check_intact(mirror.root), lambda: pull(mirror.root / "scores", "*.json")):
            with pytest.raises(StorageError, match=f"1 file .*{BY_ANOTHER}.*scores/u-a.json"):
                look_again()


def test_a_copy_that_is_gone_as_a_whole_is_not_made_again(mirror: Mirror) -> None:
    def adapter(draft: Path) -> None:
        (draft / "adapter_config.json").write_text("{}")

    ways: list[Callable[[], object]] = [
        lambda: EventLog(log_of(mirror)),
        lambda: write_json(mirror.root / "scores" / "u-b.json", {}),
        lambda: write_folder(mirror.root / "memories" / "u-a", adapter),
        lambda: pull(mirror.root / "scores", "*.json"),
        lambda: local_copy(mirror.root / "memories" / "u-a").__enter__(),
    ]
    mirror.pull(EVERY)
    shutil.rmtree(mirror.folder)
    for way in ways:
        with pytest.raises(StorageError, match=BY_ANOTHER):
            way()
    assert not mirror.folder.exists()
    assert [found.name for found in mirror.objects.list_below()] == ["events/u-a.jsonl", "scores/u-a.json"]


def test_files_in_use_show_that_they_are(mirror: Mirror) -> None:
    mirror.pull(EVERY)
    path = log_of(mirror)
    os.utime(path, (1e9, 1e9))
    mirror.manifest.touch()
    assert path.stat().st_mtime == 1e9 < path.stat().st_atime, "what is newer at the URL is newer here"


def test_systemd_leaves_a_folder_alone_whose_owner_lives(tmp_path: Path) -> None:
    program = shutil.which("systemd-tmpfiles")
    if program is None:
        pytest.skip("no systemd-tmpfiles here")
    area = tmp_path / "area"
    for name in ("alive", "dead"):
        (area / name / "run" / "events").mkdir(parents=True)
        (area / name / "run" / "events" / "u-a.jsonl").write_bytes(LINES)
    with LockFile(area / "alive" / "owner"):
        LockFile(area / "dead" / "owner").close()
        time.sleep(1.5)
        rules = tmp_path / "clean.conf"
        rules.write_text(f"e {area} - - - 1s\n")
        done = subprocess.run([program, "--clean", str(rules)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"systemd-tmpfiles does not run here: {done.stderr}")
        left = sorted(str(path.relative_to(area)) for path in area.rglob("*") if path.is_file())
    assert left == ["alive/owner", "alive/run/events/u-a.jsonl"]
