from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from milp_ray.config.models import DataSettings
from milp_ray.data import readers
from milp_ray.data.readers import ReadResult, Source, read_users, reader_names, register
from milp_ray.errors import DataError
from milp_ray.storage.objects import objects_at

SECRET = "zq canary zq"
ITEM = '{"id": "1", "date": "2020-01-01", "title": "Rain", "text": "It fell."}'
# A small file of each format, its name, and what lies beside it: the further file's name and
# content.
FIXTURES: dict[str, tuple[str, str, dict[str, tuple[str, str]]]] = {
    "amazonqa": (
        "qa.json",
        "{'asin': 'B', 'unixTime': 9, 'question': 'Fits?', 'answer': \"It's fine.\"}\n",
        {"reviews": ("r.json", '{"reviewerID": "a", "asin": "B", "reviewText": "x", "unixReviewTime": 1}\n')},
    ),
    "jsonl": (
        "users.jsonl",
        '{"user_id": "a", "history": ["x"], "samples": [{"query": "q", "response": "r"}]}\n',
        {},
    ),
    "lamp": (
        "dev_questions.json",
        f'[{{"id": "7", "input": "q", "profile": [{ITEM}]}}]',
        {"outputs": ("dev_outputs.json", '{"task": "LaMP_4", "golds": [{"id": "7", "output": "r"}]}')},
    ),
    "longlamp": (
        "rows.json",
        '[{"input": "q", "output": "r", "profile": [{"title": "t", "abstract": "a"}]}]',
        {},
    ),
    "malp": (
        "dialogues.json",
        '[[{"0": {"Assistant": "Hello.", "User": "I am ill."}}, {"1": {"Assistant": "Rest.", "User": ""}}]]',
        {},
    ),
    "messages": (
        "chat.jsonl",
        '{"user_id": "a", "messages": [{"role": "user", "content": "q"},'
        ' {"role": "assistant", "content": "r"}]}',
        {},
    ),
    "personamem": (
        "questions_32k.csv",
        "question,correct_answer,all_options,shared_context_id,end_index_in_shared_context\n"
        "q,(a),\"['(a) r', '(b) s']\",c,1\n",
        {"contexts": ("shared_contexts_32k.jsonl", '{"c": [{"role": "user", "content": "x"}]}')},
    ),
    "reddit": ("train.txt", "q###r###x\n", {"users": ("ids.txt", "a\n")}),
    "table": ("t.csv", "user,query,response\na,q,r\n", {}),
}
FORMATS = list(FIXTURES)


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

    def test_a_file_of_its_format_packed_or_not_with_a_mark_or_not(self, tmp_path: Path, reader: str) -> None:
        name, content, _ = FIXTURES[reader]
        settings = self.written(tmp_path, reader, lambda raw: raw)
        found = read_users(settings)
        assert len(found.users) == 1 and found.users[0].history and found.users[0].samples
        assert len(found.fingerprint) == 64
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert read_users(settings).users == found.users
        (tmp_path / name).write_bytes(gzip.compress(content.encode()))
        assert read_users(settings) == found

    def test_the_same_at_a_url_with_what_belongs_to_it(self, tmp_path: Path, reader: str, s3: str) -> None:
        found = read_users(self.written(tmp_path, reader, lambda raw: raw))
        place = objects_at(f"{s3}/{reader}")
        name, content, further = FIXTURES[reader]
        place.put(name, content.encode())
        for other, text in further.values():
            place.put(other, gzip.compress(text.encode()))
        files = {key: f"{s3}/{reader}/{other}" for key, (other, _) in further.items()}
        settings = {"path": f"{s3}/{reader}/{name}", "format": reader, "files": files}
        assert read_users(DataSettings.model_validate(settings)) == found

    def test_a_further_file_that_is_not_there(self, tmp_path: Path, reader: str) -> None:
        name, _, further = FIXTURES[reader]
        self.written(tmp_path, reader, lambda raw: raw)
        for key in further:
            text = problem_of(tmp_path / name, format=reader, files={key: str(tmp_path / "gone")})
            assert "no such file" in text and text.startswith(str(tmp_path / "gone"))

    @pytest.mark.parametrize("kind", ["zip", "utf-16", "html"])
    def test_a_file_of_another_kind_is_one_problem_without_its_content(
        self, tmp_path: Path, reader: str, kind: str
    ) -> None:
        raw = {"zip": b"PK\x03\x04" + SECRET.encode(), "utf-16": SECRET.encode("utf-16"),
               "html": f"<html>{SECRET}".encode()}[kind]  # fmt: skip
        self.written(tmp_path, reader, lambda _: raw)
        text = problem_of(tmp_path / FIXTURES[reader][0], format=reader)
        assert SECRET not in text and "remedy: " in text

    def written(self, folder: Path, reader: str, change: Callable[[bytes], bytes]) -> DataSettings:
        """The fixture in a folder; its settings name the further files."""
        name, content, further = FIXTURES[reader]
        (folder / name).write_bytes(change(content.encode()))
        for other, text in further.values():
            (folder / other).write_text(text, encoding="utf-8")
        files = {key: str(folder / other) for key, (other, _) in further.items()}
        settings = {"path": str(folder / name), "format": reader, "files": files}
        return DataSettings.model_validate(settings)


def test_the_page_has_a_row_for_each_format_with_its_licence_and_further_files() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert set(FORMATS) == set(reader_names()) - {"mine"}
    for name in FORMATS:
        found = readers.find_format(name)
        assert f"| {found.licence} |" in rows[name]
        assert all(f"`{file}`" in rows[name] for file in found.files)


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
