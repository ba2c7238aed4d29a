from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milp_ray.data.readers import Source, jsonl
from milp_ray.data.readers.jsonl import line_of, read_jsonl
from milp_ray.data.records import Sample, UserRecord
from milp_ray.errors import DataError

SECRET = "zq canary zq"


def user(**changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "user_id": "a",
        "history": ["one", "two"],
        "samples": [{"query": "q", "response": "r", "n_hist": 1}],
    }
    return {**base, **changes}


def sample(**changes: object) -> list[dict[str, object]]:
    return [{"query": "q", "response": "r", **changes}]


def write(folder: Path, *lines: object) -> Path:
    path = folder / "users.jsonl"
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in raw))
    return path


def facts(path: Path, **options: int) -> list[str]:
    with pytest.raises(DataError) as caught:
        read_jsonl(Source(path), **options)
    assert SECRET not in str(caught.value)
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(str.strip)


@st.composite
def records(draw: st.DrawFn) -> list[UserRecord]:
    out = []
    for user_id in draw(st.lists(text, min_size=1, max_size=4, unique=True)):
        history = draw(st.lists(text, min_size=1, max_size=4))
        optional = st.none() | text
        place = st.none() | st.integers(0, len(history))
        choices = st.lists(text, max_size=2).map(tuple)
        sample = st.builds(Sample, text, text, optional, place, optional, choices, optional)
        samples = draw(st.lists(sample, min_size=1, max_size=4))
        profile = draw(st.none() | st.dictionaries(text, text, max_size=2))
        out.append(UserRecord(user_id, tuple(history), tuple(samples), profile))
    return out


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(records())
def test_what_is_written_is_read_back(tmp_path: Path, users: list[UserRecord]) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text("".join(line_of(u) for u in users), encoding="utf-8", newline="")
    result = read_jsonl(Source(path))
    assert result.users == tuple(users)
    assert result.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    tricky = "a\u2028b\u2029c\x85d\ne"
    path.write_text(line_of(UserRecord("a", (tricky,), (Sample("q", "r"),))), encoding="utf-8", newline="")
    assert read_jsonl(Source(path)).users[0].history == (tricky,)


def test_byte_order_mark_windows_line_ends_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(user()).encode() + b"\r\n\r\n")
    result = read_jsonl(Source(path))
    assert len(result.users) == 1
    assert result.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


def test_src_is_ignored_and_optional_keys_may_be_absent(tmp_path: Path) -> None:
    found = read_jsonl(Source(write(tmp_path, user(samples=sample(src={"any": [1]}, context=""))))).users[0]
    assert found.samples == (Sample("q", "r"),)
    assert found.profile is None


def test_a_path_like_id_is_legal_data(tmp_path: Path) -> None:
    assert read_jsonl(Source(write(tmp_path, user(user_id="../../x")))).users[0].user_id == "../../x"


def test_users_without_history_or_samples_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path, user(), user(user_id="b", history=[], samples=[]), user(user_id="c", samples=[]),
        user(user_id="d", samples=[]),
    )  # fmt: skip
    result = read_jsonl(Source(path))
    assert [u.user_id for u in result.users] == ["a"]
    assert result.skipped == {"no history": 1, "no samples": 2}


BAD = {
    "not UTF-8": (b'{"user_id": "\xff"}', "is not UTF-8"),
    "not JSON": (b'{"user_id": ', "is not valid JSON"),
    "two values": (b"{} {}", "is not valid JSON"),
    "raw control character": (b'{"user_id": "a\x01"}', "is not valid JSON"),
    "NaN": (b'{"user_id": NaN}', "NaN or Infinity"),
    "Infinity": (b'{"profile": {"a": -Infinity}}', "NaN or Infinity"),
    "duplicate key": (b'{"user_id": "a", "user_id": "b"}', "same key twice"),
    "nested duplicate key": (b'{"profile": {"zq canary zq": "", "zq canary zq": ""}}', "same key twice"),
    "deep nesting": (b"[" * 200_000, "nested too deeply"),
    "huge number": (b"9" * 5000, "too many digits"),
    "a list": (b"[1]", "the line is a list"),
    "lone surrogate": (user(history=["\ud800"]), "history[0] holds half of a surrogate pair"),
    "lone surrogate in the id": (user(user_id="\udc00"), "user_id holds half of a surrogate pair"),
    "surrogate in a profile's key": (user(profile={"\ud800": "x"}), "half of a surrogate pair"),
    "NUL in a text": (user(history=["a\x00b"]), "control character U+0000"),
    "line feed in the id": (user(user_id="a\n"), "control character U+000A"),
    "empty id": (user(user_id=""), "user_id is empty"),
    "blank id": (user(user_id="  "), "user_id is empty"),
    "number as id": (user(user_id=7), "user_id is a number"),
    "history is a text": (user(history=SECRET), "history is a text"),
    "history of numbers": (user(history=["a", 1]), "history[1] is a number"),
    "empty history text": (user(history=[" "]), "history[0] is empty"),
    "samples is an object": (user(samples={}), "samples is an object"),
    "sample is a text": (user(samples=[SECRET]), "samples[0] is a text"),
    "query is null": (user(samples=[{"query": None, "response": "r"}]), "samples[0].query is null"),
    "empty response": (user(samples=[{"query": "q", "response": ""}]), "samples[0].response is empty"),
    "no response": (user(samples=[{"query": "q"}]), "samples[0]: response is missing"),
    "context is a list": (
        user(samples=sample(context=[])),
        "samples[0].context is a list",
    ),
    "n_hist is true": (user(samples=sample(n_hist=True)), "n_hist is a boolean"),
    "n_hist is 1.0": (user(samples=sample(n_hist=1.0)), "n_hist is a number"),
    "n_hist too large": (user(samples=sample(n_hist=3)), "n_hist is out of range"),
    "n_hist negative": (user(samples=sample(n_hist=-1)), "n_hist is out of range"),
    "profile is a list": (user(profile=[]), "profile is a list"),
    "profile of numbers": (user(profile={SECRET: 1}), "value 0 in profile is a number"),
    "missing keys": ({"user_id": "a"}, "history is missing"),
}  # fmt: skip


@pytest.mark.parametrize("line, fact", BAD.values(), ids=BAD.keys())
def test_bad_line(tmp_path: Path, line: object, fact: str) -> None:
    path = write(tmp_path, user(user_id="fine"), line)
    offset = len(path.read_bytes().split(b"\n")[0]) + 1
    problems = facts(path)
    assert any(fact in problem for problem in problems)
    assert all(problem.startswith(f"{path}:2 (byte ") for problem in problems)
    if not isinstance(line, bytes):
        assert f"(byte {offset})" in problems[0]


def test_unknown_keys_are_not_shown_but_the_nearest_valid_one_is(tmp_path: Path) -> None:
    path = write(tmp_path, user(histroy=[]), user(user_id="b", **{SECRET: 1}))
    near, far = facts(path)
    assert "unknown key of 7 characters" in near
    assert "did you mean 'history'?" in near
    assert "user_id, profile, history, samples" in far
    (problem,) = facts(write(tmp_path, user(samples=sample(respons="s"))))
    assert "samples[0]: unknown key" in problem
    assert "did you mean 'response'?" in problem


def test_duplicate_ids_name_both_lines_and_not_the_id(tmp_path: Path) -> None:
    (problem,) = facts(write(tmp_path, user(user_id=SECRET), user(), user(user_id=SECRET, samples=[])))
    assert ":3 (byte " in problem
    assert "same as on line 1" in problem


def test_syntax_errors_point_at_their_byte(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    first = json.dumps(user()).encode() + b"\n"
    path.write_bytes(first + '{"user_id": "é", x}'.encode())
    at = len(first) + len('{"user_id": "é", '.encode())
    (problem,) = facts(path)
    assert f":2 (byte {at})" in problem


def test_all_problems_of_a_file_and_of_a_line_are_reported(tmp_path: Path) -> None:
    path = write(tmp_path, user(user_id="", history=[1]), user(samples=3), b"}")
    assert len(facts(path)) == 4


def test_many_problems_are_cut(tmp_path: Path) -> None:
    problems = facts(write(tmp_path, user(), *[b"}"] * 50))
    assert len(problems) == 21
    assert problems[-1] == "and 30 more"


def test_line_limit_is_exact_and_reading_goes_on_after_it(tmp_path: Path) -> None:
    path = write(tmp_path, user())
    size = path.stat().st_size - 1
    assert read_jsonl(Source(path), max_line_bytes=size).users
    assert "longer than" in facts(path, max_line_bytes=size - 1)[0]
    long = user(user_id="b", history=["x" * 3000])
    problems = facts(write(tmp_path, long, b"}", user()), max_line_bytes=size)
    assert [":1 " in problems[0], ":2 " in problems[1], len(problems)] == [True, True, 2]


def test_an_endless_line_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.touch()
    os.truncate(path, 60 << 20)  # sparse zeros without a line end
    tracemalloc.start()
    try:
        problems = facts(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert f"longer than {jsonl.MAX_LINE_BYTES} bytes" in problems[0]
    assert peak < 3 * jsonl.MAX_LINE_BYTES
