"""Tables: CSV, TSV, parquet, JSON and JSON lines give the same users."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from milp_ray.config.models import DataSettings
from milp_ray.data.readers import ReadResult, read_users
from milp_ray.data.records import Sample
from milp_ray.errors import DataError

SECRET = "zq canary zq"
COLUMNS = {"user": "who", "query": "asked", "response": "said", "time": "at", "context": "page"}
ROWS = [
    {"who": "ann", "asked": "Is it, well, wet?", "said": 'Yes, "very".', "at": "2024-03-02", "page": "rain"},
    {"who": "7", "asked": "Tea?", "said": "Two\nlines.", "at": "2024-03-01T10:00:00", "page": ""},
    {"who": "ann", "asked": "And before?", "said": "Dry.", "at": "2024-03-01T12:00:00+02:00", "page": ""},
]


def read(path: Path, columns: dict[str, str] | None = None, **more: object) -> ReadResult:
    data = {"path": str(path), "format": "table", "columns": COLUMNS if columns is None else columns, **more}
    return read_users(DataSettings.model_validate(data))


def faults(path: Path, columns: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(path, columns)
    assert SECRET not in str(caught.value)
    return [str(problem) for problem in caught.value.problems]


def table(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def _frame() -> pd.DataFrame:
    return pd.DataFrame(ROWS)


FORMS = {
    "csv": lambda path: _frame().to_csv(path, index=False),
    "windows": lambda path: _frame().to_csv(path, index=False, lineterminator="\r\n", encoding="utf-8-sig"),
    "semicolons": lambda path: _frame().to_csv(path, index=False, sep=";"),
    "tsv": lambda path: _frame().to_csv(path, index=False, sep="\t"),
    "csv.gz": lambda path: _frame().to_csv(path, index=False, compression="gzip"),
    "parquet": lambda path: (
        _frame()
        .assign(at=pd.to_datetime(_frame()["at"], utc=True, format="ISO8601"))
        .assign(extra=1.5)
        .to_parquet(path)
    ),
    "json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    "json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_gives_the_same_users_in_time_order(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / form)
    found = read(tmp_path / form)
    ann, seven = found.users
    assert (ann.user_id, seven.user_id) == ("ann", "7")
    assert ann.history == ("And before?", "Dry.", "Is it, well, wet?", 'Yes, "very".')
    assert ann.samples == (
        Sample("And before?", "Dry.", None, 1),
        Sample("Is it, well, wet?", 'Yes, "very".', "rain", 3),
    )
    assert seven.samples == (Sample("Tea?", "Two\nlines.", None, 1),)
    raw = (tmp_path / form).read_bytes()
    raw = gzip.decompress(raw) if form.endswith(".gz") else raw
    assert found.fingerprint == hashlib.sha256(raw).hexdigest()


def test_columns_are_called_as_their_roles_unless_named_and_numbers_are_ids(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    frame = pd.DataFrame({"user": [1, 1], "query": ["a?", "b?"], "response": [5, 4.0], "time": [2e9, 1.5e12]})
    frame.to_parquet(path)
    (user,) = read(path, {}).users
    assert user.user_id == "1"
    assert [sample.response for sample in user.samples] == ["4", "5"], "milliseconds are before 2033"


def test_a_text_column_is_the_history_and_a_row_may_have_nothing_else(tmp_path: Path) -> None:
    path = table(tmp_path, "user,query,response,post\na,,,hello\na,q?,r!,r!\n,q?,r!,\na,q?,,\n")
    found = read(path, {"text": "post"})
    (user,) = found.users
    assert user.history == ("hello", "r!") and user.samples == (Sample("q?", "r!", None, 1),)
    assert found.dropped == {"rows without a user": 1, "rows without a query and a response": 1}


def test_a_missing_column_is_one_problem_without_the_names_that_are_there(tmp_path: Path) -> None:
    for path in (
        table(tmp_path, f"{SECRET},x,y\n1,2,3\n"),
        table(tmp_path, json.dumps({SECRET: 1}) + "\n", "t.jsonl"),
        table(tmp_path, json.dumps([{SECRET: 1}, {}]), "t.json"),
    ):
        (problem,) = faults(path, {"query": "question"})
        assert "none is called 'user' or 'question' or 'response'" in problem and "data.columns" in problem


def test_all_faults_of_rows_are_told_by_their_lines(tmp_path: Path) -> None:
    head = "user,query,response,time\n"
    rows = ['a,"two\nlines",r,1', f"{SECRET},q", "a,q\x07,r,2", f"a,q,r,{SECRET}", "a,q,r,"]
    path = table(tmp_path, head + "\n".join(rows) + "\n")
    problems = faults(path, {})
    assert [problem.split(": ")[0] for problem in problems] == [f"{path}:{line}" for line in (4, 5, 6, 7)]
    told = ("has 2 cells, and the header 4", "control character U+0007", "time is no time", "not in all")
    for fact, problem in zip(told, problems, strict=True):
        assert fact in problem


@pytest.mark.parametrize(
    "raw, fact",
    [
        (b'user,query,response\na,"q,r\n', "is not valid CSV"),
        (b"user,query,response\na,\xe9,r\n", "is not UTF-8"),
        (b'user,query,response\na,"q" x,r\n', "is not valid CSV"),
        (b"user,query,response,query\na,q,r,q\n", "column 4 is called as one before it"),
        (b"user,query,response\ra,q,r\r", "has a carriage return within its first line"),
        (b'{"user": "a", "query": 1e999, "response": "r"}', "query is infinite"),
        (b"[1]", "is a number"),
        (b"[{]", "is not valid JSON"),
        (b'{"user": [], "query": "q", "response": "r"}', "user is a list"),
        (b'{"user": "a", "query": true, "response": "r"}', "query is a boolean"),
        (b"PAR1 and nothing else PAR1", "is a parquet file that cannot be read"),
    ],
)
def test_a_damaged_table_is_told_as_what_it_is(tmp_path: Path, raw: bytes, fact: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(raw)
    assert fact in faults(path, {})[0]


def test_a_table_without_rows_holds_no_user(tmp_path: Path) -> None:
    for text in ("", "user,query,response\n", "[]"):
        assert "holds no user" in faults(table(tmp_path, text), {})[0]


def test_the_limit_of_a_cell_is_not_left_changed(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    long = "x" * (before + 1)
    (user,) = read(table(tmp_path, f"user,query,response\na,{long},r\n"), {}).users
    assert len(user.history[0]) == before + 1 and csv.field_size_limit() == before
