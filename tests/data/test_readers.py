from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import pytest

from milp_ray.config.models import DataSettings
from milp_ray.data import readers
from milp_ray.data.readers import ReadResult, Source, read_users, reader_names, register
from milp_ray.errors import DataError
from milp_ray.storage.objects import objects_at

FORMATS = ["jsonl", "malp", "messages", "table"]


def problem_of(path: Path | str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read_users(DataSettings(path=str(path), **options))  # type: ignore[arg-type]
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_built_in_readers_are_named() -> None:
    assert set(reader_names()) >= set(FORMATS)


@pytest.mark.parametrize("reader", FORMATS)
def test_a_format_says_who_its_users_are_and_which_licence_it_has(reader: str) -> None:
    found = readers.find_format(reader)
    assert found.users and found.licence


def test_files_and_columns_that_a_format_does_not_have_are_refused_at_once(tmp_path: Path) -> None:
    settings = {"path": str(tmp_path), "files": {"reviews": "x"}, "columns": {"time": "when"}}
    with pytest.raises(DataError) as caught:
        read_users(DataSettings.model_validate(settings))
    assert [problem.where for problem in caught.value.problems] == ["data.files.reviews", "data.columns.time"]
    with pytest.raises(DataError, match="one of user, time"):
        read_users(DataSettings.model_validate({**settings, "format": "messages", "columns": {"text": "a"}}))


def test_a_name_is_registered_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(readers._REGISTRY, "_entries", dict(readers._REGISTRY._entries))

    @register("mine", users="nobody", licence="none")
    def mine(source: Source) -> ReadResult:
        return ReadResult((), {"a reason": 2}, "")

    with pytest.raises(ValueError, match="'mine' is registered already"):
        register("mine", users="nobody", licence="none")(mine)
    assert "2 with a reason" in problem_of(tmp_path / "x", format="mine")


def test_unknown_format_names_the_nearest() -> None:
    text = problem_of("x", format="json")
    assert "jsonl, " in text and "malp, " in text
    assert "did you mean 'jsonl'?" in text


@pytest.mark.parametrize("reader", FORMATS)
class TestEveryReader:
    def test_missing_file(self, tmp_path: Path, reader: str) -> None:
        text = problem_of(tmp_path / "none", format=reader)
        assert "no such file" in text
        assert "check data.path" in text

    def test_folder(self, tmp_path: Path, reader: str) -> None:
        assert "is a folder" in problem_of(tmp_path, format=reader)

    def test_pipe(self, tmp_path: Path, reader: str) -> None:
        os.mkfifo(tmp_path / "pipe")
        assert "is not a regular file" in problem_of(tmp_path / "pipe", format=reader)

    def test_impossible_path(self, reader: str) -> None:
        assert "not a usable path" in problem_of("a\x00b", format=reader)

    def test_unreadable(self, tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
        # root may read everything, so the refusal is injected
        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        (tmp_path / "file").touch()
        monkeypatch.setattr(Path, "open", refuse)
        assert "cannot be read: Permission denied" in problem_of(tmp_path / "file", format=reader)


@pytest.mark.parametrize(
    "content, reader",
    [("", "jsonl"), ("\n\n", "jsonl"), ("[]", "malp")],
    ids=["empty", "blank", "no dialogue"],
)
def test_empty_data(tmp_path: Path, content: str, reader: str) -> None:
    path = tmp_path / "data"
    path.write_text(content, encoding="utf-8")
    text = problem_of(path, format=reader)
    assert "holds no user" in text
    assert "remedy: check that data.path and data.format belong together" in text


def test_no_user_left(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text('{"user_id": "a", "history": [], "samples": []}\n', encoding="utf-8")
    assert "no user is left (1 with no history)" in problem_of(path)


@pytest.mark.parametrize(
    "name, count", [("medical_dialogue", 19), ("ubuntu_irc", 66), ("shakespeare", 22), ("stackexchange", 27)]
)
def test_real_files(shared: Path, name: str, count: int) -> None:
    result = read_users(DataSettings(path=str(shared / "data" / name / "bench.jsonl")))
    assert len(result.users) == count
    assert not result.skipped


def test_a_file_at_a_url_is_read_and_its_faults_are_named_by_it(s3: str) -> None:
    place = objects_at(f"{s3}/data")
    line = b'{"user_id": "a", "history": ["x"], "samples": [{"query": "q", "response": "r", "n_hist": 1}]}\n'
    place.put("users.jsonl", line)
    found = read_users(DataSettings(path=f"{s3}/data/users.jsonl"))
    assert len(found.users) == 1 and found.fingerprint == hashlib.sha256(line).hexdigest()
    place.put("users.jsonl.gz", gzip.compress(line))
    assert read_users(DataSettings(path=f"{s3}/data/users.jsonl.gz")) == found
    place.put("bad.jsonl", b"{\n")
    for name in ("bad.jsonl", "none.jsonl"):
        text = problem_of(f"{s3}/data/{name}")
        assert text.startswith(f"{s3}/data/{name}") and "/tmp/" not in text
