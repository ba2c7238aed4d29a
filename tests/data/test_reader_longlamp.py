"""LongLaMP: three tasks, in parquet, JSON and JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from milp_ray.config.models import DataSettings
from milp_ray.data.readers import ReadResult, read_users
from milp_ray.data.records import Sample
from milp_ray.errors import DataError

SECRET = "zq canary zq"
ABSTRACT = {"title": "Tea", "abstract": "We boil it.", "id": "7", "year": 2019}
TOPIC = {"input": "Write on rain.", "output": "It fell."}
REVIEW = {"overall": 4.0, "summary": "Good", "description": "A pot.", "reviewText": "It holds tea."}
TASKS: dict[str, tuple[dict[str, object], str, str, str]] = {
    "name": (ABSTRACT, "Tea\nWe boil it.", "called: Tea", "We boil it."),
    "author": (TOPIC, "Write on rain.\nIt fell.", "Write on rain.", "It fell."),
    "reviewerId": (REVIEW, "Good\nIt holds tea.", "rated 4 of 5, of this product: A pot.", "It holds tea."),
}


def rows(key: str, item: dict[str, object]) -> list[dict[str, object]]:
    return [{"input": f"q{i}", "output": f"a{i}", "profile": [item], key: f"p{i}"} for i in range(2)]


def read(path: Path, regime: str = "by_user") -> ReadResult:
    data = {"path": str(path), "format": "longlamp", "split": {"regime": regime}}
    return read_users(DataSettings.model_validate(data))


def faults(path: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(path)
    assert SECRET not in str(caught.value)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("form", ["parquet", "json", "jsonl"])
@pytest.mark.parametrize("key", TASKS)
def test_every_task_is_read_from_every_form(tmp_path: Path, key: str, form: str) -> None:
    item, text, asks, says = TASKS[key]
    path = tmp_path / "train"
    if form == "parquet":
        pd.DataFrame(rows(key, item)).to_parquet(path)
    else:
        lines = [json.dumps(row) for row in rows(key, item)]
        path.write_text(f"[{','.join(lines)}]" if form == "json" else "\n".join(lines))
    first, second = read(path).users
    assert (first.user_id, second.user_id) == ("p0", "p1") and first.history == (text,)
    assert first.samples == (Sample("q0", "a0", n_hist=1, source_id="row-0"),)
    pair, _ = read(path, "per_user").users[0].samples
    assert pair.query.endswith(asks) and (pair.response, pair.n_hist) == (says, 0)


def test_rows_that_name_nobody_are_users_of_their_own_and_losses_are_counted(tmp_path: Path) -> None:
    bare = {"input": "q", "output": "a", "profile": [TOPIC, {**TOPIC, "output": ""}]}
    path = tmp_path / "rows.jsonl"
    lines = [bare, {**bare, "output": None}, {**bare, "profile": []}]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    found = read(path)
    assert [user.user_id for user in found.users] == ["row-0"] and found.skipped == {"no history": 1}
    assert found.dropped == {"items of profiles without a text": 2, "rows without an input or an output": 1}


def test_what_is_no_row_of_longlamp_is_told_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    profiles = ([TOPIC], SECRET, [SECRET], [ABSTRACT])
    lines = [{"input": "q", "output": "a", "profile": profile} for profile in profiles]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    told = ("profile is a text", "profile[0] is a text", "profile[0] has no input")
    for fact, problem in zip(told, faults(path), strict=True):
        assert fact in problem
    path.write_text(json.dumps({"input": "q", "output": "a", "profile": [{SECRET: 1}]}))
    assert "profile[0] has the keys of no task" in faults(path)[0]
    path.write_text("input,output\na,b\n")
    (problem,) = faults(path)
    assert "none is called 'profile'" in problem and "name a split of LongLaMP" in problem
