"""Amazon's questions and answers: JSON or Python literals, with people's ids or by reviews."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from milp_ray.config.models import DataSettings, SplitSettings
from milp_ray.data.readers import ReadResult, literals, read_users
from milp_ray.data.readers.literals import parse_record
from milp_ray.data.readers.strict import Fault
from milp_ray.data.records import Sample
from milp_ray.data.splits import split_population
from milp_ray.errors import DataError

SECRET = "zq canary zq"
DAY = 86_400
MULTI = {
    "asin": "B1",
    "questions": [
        {
            "questionText": "Is it loud?",
            "askerID": "ann",
            "questionTime": "January 2, 2014",
            "answers": [
                {"answerText": "Not at all.", "answererID": "bo", "answerTime": "Jan 3, 2014"},
                {"answerText": "A bit.", "answerTime": "January 4, 2014"},
            ],
        },
        {
            "questionText": "Who made it?",
            "questionTime": "January 1, 2014",
            "answers": [{"answerText": "Its maker.", "answererID": "bo", "answerTime": "January 2, 2014"},
                        {"answerText": "Don't know.", "answerTime": "January 2, 2014"}],
        },
    ],
}  # fmt: skip
SINGLE = {"asin": "B1", "unixTime": 10 * DAY, "question": "Fits?", "answer": "It does."}


def review(user: str, day: int, text: str, product: str = "B1") -> dict[str, object]:
    told = {"reviewText": text, "summary": "Well", "unixReviewTime": day * DAY}
    return {"reviewerID": user, "asin": product, **told}


def read(folder: Path, lines: list[object], reviews: list[object] | None = None) -> ReadResult:
    """Lines as Python literals, reviews as JSON; what is bytes, as it is."""
    path, other = folder / "qa_Toys.json.gz", folder / "reviews.json"
    raw = [line if isinstance(line, bytes) else repr(line).encode() for line in lines]
    path.write_bytes(gzip.compress(b"".join(line + b"\n" for line in raw)))
    data: dict[str, object] = {"path": str(path), "format": "amazonqa"}
    if reviews is not None:
        other.write_text("".join(json.dumps(one) + "\n" for one in reviews))
        data["files"] = {"reviews": str(other)}
    return read_users(DataSettings.model_validate(data))


def faults(folder: Path, lines: list[object], reviews: list[object] | None = None) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(folder, lines, reviews)
    assert SECRET not in str(caught.value)
    return [str(problem) for problem in caught.value.problems]


def test_who_answers_is_the_user_and_who_asks_where_nobody_is_named_for_the_answer(tmp_path: Path) -> None:
    found = read(tmp_path, [MULTI])
    ann, bo = found.users
    assert (ann.user_id, bo.user_id) == ("ann", "bo")
    assert ann.history == ("Is it loud?",)
    assert ann.samples == (Sample("Is it loud?", "A bit.", n_hist=1),)
    assert bo.history == ("Its maker.", "Not at all."), "by time"
    assert bo.samples == (
        Sample("Who made it?", "Its maker.", n_hist=0),
        Sample("Is it loud?", "Not at all.", n_hist=1),
    )
    assert found.dropped == {"answers by nobody that the file names": 1}


def test_json_lines_give_the_same_users_as_literals(tmp_path: Path) -> None:
    assert read(tmp_path, [json.dumps(MULTI).encode()]).users == read(tmp_path, [MULTI]).users


def test_reviews_of_those_who_are_named_join_their_history(tmp_path: Path) -> None:
    reviews = [review("bo", 20_000, "Later."), review("bo", 1, "Early."), review("eve", 1, "Mine.")]
    found = read(tmp_path, [MULTI], reviews)
    ann, bo = found.users
    assert bo.history == ("Well\nEarly.", "Its maker.", "Not at all.", "Well\nLater.")
    assert [sample.n_hist for sample in bo.samples] == [1, 2] and ann.history == ("Is it loud?",)
    assert found.fingerprint != read(tmp_path, [MULTI]).fingerprint


def test_without_ids_a_question_goes_to_one_who_had_reviewed_the_product(tmp_path: Path) -> None:
    reviews = [review("late", 11, "New."), review("old", 1, "First."), review("mid", 5, "Second."),
               review("mid", 2, "Other.", "B2"), review("far", 1, "Elsewhere.", "B3")]  # fmt: skip
    again = {**SINGLE, "question": "Blue?", "answer": "Yes."}
    found = read(tmp_path, [SINGLE, again, {**SINGLE, "asin": "B9"}], reviews)
    assert [user.user_id for user in found.users] == ["old", "mid"], "in the order of their reviews"
    old, mid = found.users
    assert mid.history == ("Well\nOther.", "Well\nSecond.")
    assert mid.samples == (Sample("Fits?", "It does.", n_hist=2),)
    assert old.samples == (Sample("Blue?", "Yes.", n_hist=1),)
    assert found.dropped == {"questions about products that no user had reviewed": 1}


def test_guptas_form_takes_the_answer_that_helped_most_and_its_snippets(tmp_path: Path) -> None:
    answers = [{"answerText": "No.", "helpful": [1, 9]}, {"answerText": "Yes!", "helpful": [7, 9]}]
    line = {"asin": "B1", "questionText": "Nice?", "answers": answers, "review_snippets": ["a", "b"]}
    (user,) = read(tmp_path, [json.dumps(line).encode()], [review("mid", 5, "Second.")]).users
    assert user.samples == (Sample("Nice?", "Yes!", "a\nb", n_hist=1),)


def test_a_file_that_names_nobody_says_what_to_give(tmp_path: Path) -> None:
    (problem,) = faults(tmp_path, [SINGLE, SINGLE])
    assert "none of its 2 questions says who asked or answered" in problem
    assert "data.files" in problem and "reviews" in problem


def test_blank_texts_are_counted(tmp_path: Path) -> None:
    blank = {**SINGLE, "question": " "}
    found = read(tmp_path, [SINGLE, blank], [review("a", 1, "x"), review("a", 2, "") | {"summary": ""}])
    assert found.dropped == {"questions, answers or reviews without a text": 2}


def test_every_bad_line_is_told_by_its_place_alone(tmp_path: Path) -> None:
    bad = {
        "is neither JSON nor a Python literal": f"{{'asin': {SECRET}".encode(),
        "same key twice": b"{'question': 'a', 'question': 'b'}",
        "the line is a list": [SECRET],
        "none of its keys": {"asin": SECRET},
        "asin is missing": {"question": SECRET, "answer": "b"},
        "answers is no list of objects": {"asin": "b", "questionText": "q", "answers": [SECRET]},
        "half of a surrogate pair": {**SINGLE, "answer": "\ud800"},
        "the answer is a list": {**SINGLE, "answer": [SECRET]},
        "is not UTF-8": b"{'asin': '\xff'}",
        "NaN or Infinity": b'{"asin": NaN}',
    }  # fmt: skip
    problems = faults(tmp_path, [SINGLE, *bad.values()], [])
    assert len(problems) == len(bad)
    for number, (fact, problem) in enumerate(zip(bad, problems, strict=True), 2):
        assert f"qa_Toys.json.gz:{number} (byte " in problem and fact in problem
    (other,) = faults(tmp_path, [{"text": SECRET}] * 9)
    assert "none of its 9 lines is an object with asin and question" in other
    (reviews,) = faults(tmp_path, [SINGLE], [{"overall": 5}] * 3)
    assert "none of its 3 lines is an object with reviewerID" in reviews


def test_a_literal_is_bounded_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    assert parse_record(rb"{'a': '\d'}") == {"a": "\\d"} and not list(recwarn)
    running = b"__import__('os').getcwd()"
    for raw in (running, b"[" * 100_000, b"{[]: 1}", b"9" * 5000, b"{'a': f'{1}'}", b"\x00"):
        with pytest.raises(Fault):
            parse_record(raw)
    monkeypatch.setattr(literals, "MAX_LITERAL_BYTES", 10)
    with pytest.raises(Fault, match="more than 10 bytes"):
        parse_record(b"{'a': 'long enough'}")


def test_reviewers_can_be_divided_and_what_is_known_of_them_precedes_their_questions(tmp_path: Path) -> None:
    lines, reviews = [], []
    for n in range(10):
        lines.append({**SINGLE, "asin": f"B{n}", "answer": f"This is the long answer with the number {n}."})
        reviews.append(review(f"user{n}", 3, f"A review of product {n}.", f"B{n}"))
        reviews.append(review(f"user{n}", 12, f"A later review of product {n}.", "C"))
    users = read(tmp_path, lines, reviews).users
    settings = DataSettings(path="x", split=SplitSettings(regime="by_user"))
    parts = split_population(users, b"key", settings, seed=0)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [7, 1, 2]
    for user in parts.test:
        number = user.test[0].response[-2]
        assert user.final_history == (f"Well\nA review of product {number}.",)
