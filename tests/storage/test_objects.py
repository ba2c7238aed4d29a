"""Objects by name: the same on S3, in memory and in a folder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from milp_ray.errors import RunBusyError, StorageError
from milp_ray.storage.objects import Objects, objects_at, temporary_copy
from tests.storage.conftest import Failing


def test_put_get_list_and_delete(objects: Objects) -> None:
    assert objects.list_below() == [] and not objects.exists("a.json")
    with pytest.raises(FileNotFoundError):
        objects.get("a.json")
    objects.put("a.json", b"1")
    objects.put("events/u.jsonl", b"one\n")
    objects.put("events/u.jsonl", b"one\ntwo\n")
    objects.put("memories/u-a/adapter_model.safetensors", b"\x00" * 6_000_000)
    objects.put("empty", b"")
    assert objects.get("events/u.jsonl") == b"one\ntwo\n" and objects.get("empty") == b""
    assert len(objects.get("memories/u-a/adapter_model.safetensors")) == 6_000_000
    found = objects.list_below()
    assert [(f.name, f.size) for f in found] == [
        ("a.json", 1),
        ("empty", 0),
        ("events/u.jsonl", 8),
        ("memories/u-a/adapter_model.safetensors", 6_000_000),
    ]
    assert all(f.mtime is None or abs(f.mtime - time.time()) < 60 for f in found)
    assert [f.name for f in objects.list_below("events")] == ["events/u.jsonl"]
    assert objects.exists("a.json") and not objects.exists("events") and not objects.exists("a")
    for _ in range(2):  # none is no error
        objects.delete("a.json")
        objects.delete_folder("memories/u-a")
    assert [f.name for f in objects.list_below()] == ["empty", "events/u.jsonl"]
    objects.delete_folder()
    assert objects.list_below() == []


def test_one_name_is_no_prefix_of_another(objects: Objects) -> None:
    objects.put("events/u-a.jsonl", b"1")
    objects.put("events-of-others/u-b.jsonl", b"1")
    assert [f.name for f in objects.list_below("events")] == ["events/u-a.jsonl"]
    objects.delete_folder("events")
    assert [f.name for f in objects.list_below()] == ["events-of-others/u-b.jsonl"]


def test_what_fails_for_a_moment_is_tried_again(
    objects: Objects, failing: Callable[[Objects], Failing]
) -> None:
    between = failing(objects)
    between.error, between.left = OSError("AWS Error SLOW_DOWN"), 2
    objects.put("a", b"1")
    assert between.calls >= 3 and objects.get("a") == b"1"


def test_a_put_that_fails_leaves_the_old_object(
    objects: Objects, failing: Callable[[Objects], Failing]
) -> None:
    objects.put("a", b"old")
    between = failing(objects)
    between.error, between.left = OSError("AWS Error NETWORK_CONNECTION during PutObject"), 99
    with pytest.raises(StorageError, match="NETWORK_CONNECTION") as caught:
        objects.put("a", b"new")
    assert "AWS_ENDPOINT_URL" in str(caught.value) and between.calls == 3
    between.error = None
    assert objects.get("a") == b"old" and [f.name for f in objects.list_below()] == ["a"]


def test_what_no_further_try_mends_is_said_at_once(
    objects: Objects, failing: Callable[[Objects], Failing]
) -> None:
    between = failing(objects)
    between.error, between.left = OSError("AWS Error ACCESS_DENIED during PutObject"), 99
    with pytest.raises(StorageError, match="give the credentials the right"):
        objects.put("a", b"1")
    assert between.calls == 1


@pytest.mark.parametrize("objects", ["s3", "gs"], indirect=True)
def test_a_missing_bucket_is_said_with_the_remedy(objects: Objects) -> None:
    objects._root = "no-such-bucket-here/runs"
    assert objects.list_below() == []
    with pytest.raises(StorageError, match="make the bucket first"):
        objects.put("a", b"1")


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    objects = objects_at("s3://bucket/runs")
    objects._pauses = (0.0,)
    with pytest.raises(StorageError, match="check the network"):
        objects.put("a", b"1")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://key:secret@bucket/x", "without credentials"),
        ("s3://bucket/x?secret_key=abc", "without credentials"),
        ("file:///data/runs", "without file://"),
        ("s3://bucket/../x", "s3://bucket/folder"),
        ("s3://", "s3://bucket/folder"),
        ("s4://bucket/x", "a scheme that is known here"),
        ("abfs://container/x", "whose package is installed"),
    ],
)
def test_urls_that_are_refused_are_never_quoted(url: str, expected: str) -> None:
    with pytest.raises(StorageError, match=expected) as caught:
        objects_at(url)
    assert "secret" not in str(caught.value).replace("AWS_SECRET", "")


def test_a_file_at_a_url_is_copied_for_a_while(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    objects_at(url).put("users.jsonl", b"x" * 9_000_000)
    with temporary_copy(f"{url}/users.jsonl") as copy:
        assert copy.is_file() and len(copy.read_bytes()) == copy.stat().st_size == 9_000_000
        assert not list(tmp_path.iterdir()), "a process that is killed here would leave users' texts"
    with temporary_copy(f"{url}/nothing.jsonl") as copy:
        assert not copy.exists()


def test_two_writers_of_one_name_never_move_each_others_drafts(tmp_path: Path) -> None:
    from pyarrow import fs

    objects = Objects(fs.LocalFileSystem(), str(tmp_path), "folder://run")

    class Other:
        """Another writer, which puts the same name when the first one has written its draft."""

        drafts = 0

        def ensure_held(self) -> None:
            found = list(tmp_path.glob(".table*.tmp"))
            if found and not self.drafts:
                self.drafts = len(found)
                for draft in found:
                    assert draft.read_bytes() == b"mine"
                objects.put("table", b"another's")
                assert found == list(tmp_path.glob(".table*.tmp")), "the first one's draft is still there"

        def note_doubt(self) -> None:
            raise AssertionError("no attempt fails")

    other = Other()
    objects.guarded(other).put("table", b"mine")
    assert other.drafts == 1 and objects.get("table") == b"mine" and not list(tmp_path.glob(".*"))


def test_a_draft_goes_with_the_attempt_that_was_refused(tmp_path: Path) -> None:
    from pyarrow import fs

    class Lost:
        asked = 0

        def ensure_held(self) -> None:
            self.asked += 1
            if self.asked == 2:
                raise RunBusyError("another has it")

        def note_doubt(self) -> None:
            pass

    with pytest.raises(RunBusyError):
        Objects(fs.LocalFileSystem(), str(tmp_path), "folder://run").guarded(Lost()).put("table", b"1")
    assert list(tmp_path.iterdir()) == []


def test_one_call_to_google_does_not_try_for_a_quarter_of_an_hour() -> None:
    from pyarrow import fs

    bounded, usual = (
        fs.FileSystem.from_uri(f"gs://bucket/run{end}")[0] for end in ("?retry_limit_seconds=10", "")
    )
    assert objects_at("gs://bucket/run")._fs == bounded != usual
