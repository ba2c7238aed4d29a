"""Chats in OpenAI's and ShareGPT's form."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from milp_ray.config.models import DataSettings
from milp_ray.data.readers import ReadResult, read_users
from milp_ray.data.records import Sample
from milp_ray.errors import DataError

SECRET = "zq canary zq"


def openai(user: str, *said: str, **more: object) -> dict[str, object]:
    """Messages of user and assistant in turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
    return {"user_id": user, "messages": messages, **more}


def read(folder: Path, *lines: object, **data: object) -> ReadResult:
    path = folder / "chat.jsonl"
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in raw))
    return read_users(DataSettings.model_validate({"path": str(path), "format": "messages", **data}))


def faults(folder: Path, *lines: object, **data: object) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(folder, *lines, **data)
    assert SECRET not in str(caught.value)
    return [str(problem) for problem in caught.value.problems]


def test_conversations_of_one_user_follow_each_other(tmp_path: Path) -> None:
    found = read(
        tmp_path, openai("ann", "Hi.", "Hello!"), openai("bo", "So?", "No."), openai("ann", "A?", "B.")
    )
    ann, bo = found.users
    assert ann.history == ("User: Hi.", "Assistant: Hello!", "User: A?", "Assistant: B.")
    assert ann.samples == (Sample("Hi.", "Hello!", None, 1), Sample("A?", "B.", None, 3))
    assert bo.user_id == "bo"


def test_time_decides_where_lines_have_it(tmp_path: Path) -> None:
    late, early = (openai("a", q, "ok", when=t) for q, t in (("2", "2024-01-02"), ("1", 1.6e9)))
    (user,) = read(tmp_path, late, early, columns={"time": "when"}).users
    assert [sample.query for sample in user.samples] == ["1", "2"]
    (problem,) = faults(tmp_path, late, openai("a", "3", "ok"), columns={"time": "when"})
    assert "not in all" in problem


def test_sharegpt_and_parts_and_other_roles(tmp_path: Path) -> None:
    turns = [
        ("system", "Be kind."),
        ("gpt", "Welcome."),
        ("human", "One."),
        ("human", "Two."),
        ("gpt", "Three."),
    ]
    share = {"owner": 5, "conversations": [{"from": role, "value": text} for role, text in turns]}
    parts = [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {}}]
    said = [("user", parts), ("assistant", None), ("tool", "{}"), ("assistant", "A cat.")]
    chat = {"owner": 5, "messages": [{"role": role, "content": text} for role, text in said]}
    (user,) = read(tmp_path, share, chat, columns={"user": "owner"}).users
    assert user.user_id == "5"
    assert user.history[0] == "Assistant: Welcome." and "Be kind." not in str(user.history)
    assert user.samples == (Sample("One.\nTwo.", "Three.", None, 3), Sample("Look:", "A cat.", None, 5))


def test_users_without_an_answer_and_lines_without_a_user_are_counted(tmp_path: Path) -> None:
    found = read(tmp_path, openai("a", "Hi.", "Yes."), openai("b", "Alone."), openai("c"), assistant_alone())
    assert [user.user_id for user in found.users] == ["a"]
    assert found.skipped == {"no samples": 1}
    assert found.dropped == {"conversations without a message of the user": 2}


def assistant_alone() -> dict[str, object]:
    return {"user_id": "d", "messages": [{"role": "assistant", "content": "Anyone?"}]}


def test_gzip_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "c.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(openai("a", "Hi.", "Yes.")).encode()))
    assert len(read_users(DataSettings(path=str(path), format="messages")).users) == 1


def test_every_bad_line_is_told_by_its_place_alone(tmp_path: Path) -> None:
    bad = {
        "the line is a list": [SECRET],
        "neither messages nor conversations": {"user_id": SECRET},
        "no user id": {"messages": []},
        "the user id is a list": {"user_id": [SECRET], "messages": []},
        "messages is a text": {"user_id": "a", "messages": SECRET},
        "messages[0] is a text": {"user_id": "a", "messages": [SECRET]},
        "messages[0].role is no known role": {"user_id": "a", "messages": [{"role": SECRET}]},
        "messages[0].content is a number": {"user_id": "a", "messages": [{"role": "user", "content": 3}]},
        "half of a surrogate pair": openai("a", "\ud800"),
        "same key twice": b'{"user_id": "a", "user_id": "b"}',
        "is not UTF-8": b'{"user_id": "\xff"}',
    }  # fmt: skip
    problems = faults(tmp_path, openai("a", "Hi.", "Yes."), *bad.values())
    assert len(problems) == len(bad)
    for number, (fact, problem) in enumerate(zip(bad, problems, strict=True), 2):
        assert f"chat.jsonl:{number} (byte " in problem and fact in problem


def test_a_file_of_other_lines_is_one_problem(tmp_path: Path) -> None:
    (problem,) = faults(tmp_path, *[{"text": SECRET}] * 30)
    assert "none of its 30 lines is an object with a user id and messages" in problem
    assert "docs/data.md" in problem
