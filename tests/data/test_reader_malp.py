from __future__ import annotations

import json
from pathlib import Path

import pytest

from milp_ray.data.readers import Source
from milp_ray.data.readers.malp import read_malp
from milp_ray.data.records import Sample
from milp_ray.errors import DataError


def dialogue(*exchanges: tuple[str, str]) -> list[object]:
    return [{str(i): {"Assistant": a, "User": u}} for i, (a, u) in enumerate(exchanges)]


def write(folder: Path, value: object) -> Path:
    path = folder / "dialogues.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


PLAIN = dialogue(
    ('"Hello, how can I help?"', '"My head hurts."'),
    ('Doctor: "Since when?"', 'Patient: "Since Monday, after the "party"."'),
    ("Drink water.", "Thank you. (End of conversation)"),
)


def test_the_next_exchange_answers_and_the_greeting_goes(tmp_path: Path) -> None:
    (user,) = read_malp(Source(write(tmp_path, [PLAIN]))).users
    assert user.user_id == "dialogue-0"
    assert user.history == (
        "Patient: My head hurts.",
        "Doctor: Since when?",
        'Patient: "Since Monday, after the "party"."',
        "Doctor: Drink water.",
        "Patient: Thank you.",
    )
    assert [(s.query, s.response, s.n_hist) for s in user.samples] == [
        ("My head hurts.", "Since when?", 1),
        ('"Since Monday, after the "party"."', "Drink water.", 3),
    ]


def test_roles_change_places_after_an_empty_turn(tmp_path: Path) -> None:
    swapped = dialogue(
        ("Hello", "It hurts."), ("Where?", ""), ("In the knee.", "Rest it."), ("Patient: I will.", "")
    )
    (user,) = read_malp(Source(write(tmp_path, [swapped]))).users
    assert user.history == (
        "Patient: It hurts.",
        "Doctor: Where?",
        "Patient: In the knee.",
        "Doctor: Rest it.",
        "Patient: I will.",
    )
    assert [s.n_hist for s in user.samples] == [1, 3]


@pytest.mark.parametrize(
    "noise",
    [
        "Error Networking, check your network",
        "As an AI language model, I cannot do that.",
        "End of simulation.",
        'Patient: "Hi." \n\nDoctor: "Hello."',
    ],
)
def test_failed_turns_are_neither_history_nor_part_of_a_sample(tmp_path: Path, noise: str) -> None:
    broken = dialogue(
        ("Hi", "One."), (noise, "Two."), ("Three.", noise), ("Four.", "Five."), ("Six.", "Bye.")
    )
    (user,) = read_malp(Source(write(tmp_path, [broken]))).users
    assert [text.split(": ")[1] for text in user.history] == [
        "One.",
        "Two.",
        "Three.",
        "Four.",
        "Five.",
        "Six.",
        "Bye.",
    ]
    assert user.samples == (Sample("Two.", "Three.", n_hist=2), Sample("Five.", "Six.", n_hist=5))


MALFORMED = {
    "not a list": {"0": {}},
    "empty": [],
    "exchange is a text": ["x"],
    "wrong number": [{"1": {"Assistant": "a", "User": "b"}}],
    "two numbers": [{"0": {"Assistant": "a", "User": "b"}, "1": {}}],
    "a role is missing": [{"0": {"Assistant": "a"}}],
    "a turn is null": [{"0": {"Assistant": "a", "User": None}}],
    "a turn cannot be encoded": [{"0": {"Assistant": "a", "User": "\ud800"}}],
}


@pytest.mark.parametrize("entry", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_entries_are_skipped_and_counted(tmp_path: Path, entry: object) -> None:
    result = read_malp(Source(write(tmp_path, [entry, PLAIN, dialogue(("Hello", "Hm."))])))
    assert [user.user_id for user in result.users] == ["dialogue-1"]
    assert result.skipped == {"malformed dialogue": 1, "no samples": 1}


@pytest.mark.parametrize("value", [{"a": PLAIN}, [1, 2], ["canary text"]], ids=["object", "numbers", "texts"])
def test_a_wholly_wrong_shape_is_an_error(tmp_path: Path, value: object) -> None:
    with pytest.raises(DataError, match="a list of dialogues") as caught:
        read_malp(Source(write(tmp_path, value)))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"[", b"[NaN]", b'[{"a": 1, "a": 2}]', b"\xff"])
def test_bad_json_is_an_error(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "dialogues.json"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"byte (0|1)\b"):
        read_malp(Source(path))


def test_released_file(shared: Path) -> None:
    result = read_malp(Source(shared / "data" / "raw_formats" / "malp_dialogues.json"))
    assert len(result.users) == 20
    assert not result.skipped
    for user in result.users:
        assert 3 <= len(user.samples) <= 5
        for sample in user.samples:
            assert sample.n_hist
            assert user.history[sample.n_hist] == f"Doctor: {sample.response}"
            assert user.history[sample.n_hist - 1] == f"Patient: {sample.query}"
        words = " ".join(user.history).lower()
        assert "language model" not in words
        assert "error networking" not in words


def test_a_byte_order_mark_counts_among_the_bytes_of_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "dialogues.json"
    path.write_bytes(b"\xef\xbb\xbf[x]")
    with pytest.raises(DataError, match="byte 4: is not valid JSON"):
        read_malp(Source(path))
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([PLAIN]).encode())
    assert len(read_malp(Source(path)).users) == 1
