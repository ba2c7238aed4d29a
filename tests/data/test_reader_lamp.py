"""LaMP: questions, outputs and profiles, all tasks; predictions in LaMP's own form."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from milp_ray.config.models import DataSettings
from milp_ray.data.readers import ReadResult, predictions_of, read_users
from milp_ray.data.readers.lamp import predictions
from milp_ray.data.records import Sample
from milp_ray.data.splits import split_users
from milp_ray.errors import DataError
from milp_ray.storage.objects import objects_at

SECRET = "zq canary zq"
PAPER = {"title": "Tea", "abstract": "We boil."}
MOVIE = {"description": "A ship.", "tag": "classic"}
NEWS = {"title": "T", "text": "Goal!", "category": "sports"}
TWEET = "one two three four five"
# One item of each task, what its history text is, its exchange, and an answer to a question.
TASKS: dict[str, tuple[dict[str, str], str, tuple[str, str], str]] = {
    "LaMP_1": (PAPER, "Tea\nWe boil.", ("called: Tea", "We boil."), "[2]"),
    "LaMP_2": (MOVIE, "A ship.\nTag: classic", ("A ship.", "classic"), "action"),
    "LaMP_2 news": (NEWS, "T\nGoal!\nCategory: sports", ("Goal!", "sports"), "women"),
    "LaMP_3": ({"text": "Fine.", "score": "4"}, "Fine.\nScore: 4", ("to 5: Fine.", "4"), "5"),
    "LaMP_4": ({"title": "Rain", "text": "It fell."}, "Rain\nIt fell.", ("article: It fell.", "Rain"), "Sun"),
    "LaMP_5": (PAPER, "Tea\nWe boil.", ("abstract a title: We boil.", "Tea"), "Milk"),
    "LaMP_7": ({"text": TWEET}, TWEET, ("tweet: one", "two three four five"), "x y"),
}
LABELLED = ("LaMP_1", "LaMP_2", "LaMP_2 news", "LaMP_3")


def question(key: str, items: list[dict[str, str]], **more: object) -> dict[str, object]:
    dated = [{"id": f"{key}{i}", "date": f"2020-01-{i + 1:02}", **item} for i, item in enumerate(items)]
    return {"id": key, "input": f"question {key}", "profile": dated, **more}


def golds(task: str, outputs: dict[str, str]) -> dict[str, object]:
    return {"task": task, "golds": [{"id": key, "output": text} for key, text in outputs.items()]}


def write(folder: Path, questions: object, outputs: object | None, name: str = "dev_questions.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(questions))
    if outputs is not None:
        (folder / name.replace("questions", "outputs")).write_text(json.dumps(outputs))
    return path


def read(path: Path | str, **data: object) -> ReadResult:
    return read_users(DataSettings.model_validate({"path": str(path), "format": "lamp", **data}))


BY_USER = {"split": {"regime": "by_user"}}


def faults(path: Path, **data: object) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(path, **data)
    assert SECRET not in str(caught.value)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("task", TASKS)
def test_profiles_become_history_and_exchanges_and_answers_keep_labels(tmp_path: Path, task: str) -> None:
    item, text, (asks, says), answer = TASKS[task]
    path = write(tmp_path, [question("1", [item, item])], golds(task.split()[0], {"1": answer}))
    (user,) = read(path).users
    assert user.history == (text, text)
    first, second, asked = user.samples
    assert first.query.endswith(asks) and first.response == says and (first.n_hist, second.n_hist) == (0, 1)
    assert (asked.query, asked.response, asked.n_hist, asked.source_id) == ("question 1", answer, 2, "1")
    assert asked.label == (answer if task in LABELLED else None)
    assert (answer in asked.choices) == (task in LABELLED)
    assert bool(first.label) == (task in LABELLED[1:]), "titles and abstracts are no labels"
    (held_out,) = read(path, **BY_USER).users
    assert held_out.samples == (asked,), "by user, only questions are asked"


def test_items_stand_in_order_of_their_dates_and_blank_ones_are_counted(tmp_path: Path) -> None:
    asked = question("1", [{"text": "c"}, {"text": " "}, {"text": "a"}])
    items: list[dict[str, str]] = asked["profile"]  # type: ignore[assignment]
    items[0]["date"] = "2021-01-01"
    found = read(write(tmp_path, [asked], golds("LaMP_7", {"1": "x"})))
    assert found.users[0].history == ("a", "c")
    assert found.dropped == {"items of profiles without a text": 1}


def test_questions_of_one_user_know_the_items_of_their_own_profiles(tmp_path: Path) -> None:
    """LaMP's split by time: a later question has a longer profile."""
    items = [{"id": str(i), "date": f"2020-01-0{i}", "text": f"tweet {i}"} for i in (1, 2, 3)]
    late, early = ({"input": "q", "user_id": 7, "profile": items[:count]} for count in (3, 1))
    asked = [late | {"id": "b"}, early | {"id": "a"}]
    (user,) = read(write(tmp_path, asked, golds("LaMP_7", {"a": "x", "b": "y"})), **BY_USER).users
    assert user.user_id == "7" and len(user.history) == 3
    assert [(sample.source_id, sample.n_hist) for sample in user.samples] == [("a", 1), ("b", 3)]


def test_the_question_is_a_test_sample_of_a_split_of_each_users_own(tmp_path: Path) -> None:
    items = [{"title": f"title of number {i}", "text": f"text of number {i}"} for i in range(12)]
    path = write(tmp_path, [question("1", items)], golds("LaMP_4", {"1": "the newest headline"}))
    data = DataSettings(path=str(path), format="lamp")
    (user,) = split_users(read_users(data).users, b"key", data).users
    assert user.test[-1].source_id == "1" and all(sample.source_id is None for sample in user.train)


def test_users_without_a_profile_are_counted(tmp_path: Path) -> None:
    asked = [question("1", [{"text": "a"}]), question("2", [])]
    assert read(write(tmp_path, asked, golds("LaMP_7", {"1": "x", "2": "y"}))).skipped == {"no history": 1}


def test_outputs_are_found_packed_at_a_url_or_where_the_study_says(tmp_path: Path, s3: str) -> None:
    asked = json.dumps([question("1", [{"text": "a"}])]).encode()
    outputs = json.dumps(golds("LaMP_7", {"1": "x"})).encode()
    (tmp_path / "dev_questions.json.gz").write_bytes(gzip.compress(asked))
    (tmp_path / "dev_outputs.json").write_bytes(outputs)
    found = read(tmp_path / "dev_questions.json.gz")
    place = objects_at(f"{s3}/lamp")
    place.put("dev_questions.json", asked)
    place.put("dev_outputs.json.gz", gzip.compress(outputs))
    assert read(f"{s3}/lamp/dev_questions.json") == found
    (tmp_path / "mine.json").write_bytes(asked)
    assert read(tmp_path / "mine.json", files={"outputs": f"{s3}/lamp/dev_outputs.json.gz"}) == found
    place.put("bad_questions.json", asked)
    place.put("bad_outputs.json", b"{")
    with pytest.raises(DataError, match=r"bad_outputs\.json: 1 problem\n  byte 1") as caught:
        read(f"{s3}/lamp/bad_questions.json")
    assert "/proc/" not in str(caught.value) and f"{s3}/lamp/bad_outputs.json" in str(caught.value)


def test_missing_outputs_say_where_they_are_or_that_nobody_has_them(tmp_path: Path) -> None:
    asked = [question("1", [{"text": "a"}])]
    (dev,) = faults(write(tmp_path, asked, None))
    assert "there is no dev_outputs.json beside it" in dev and "data.files.outputs" in dev
    (test,) = faults(write(tmp_path, asked, None, "test_questions.json"))
    assert "keeps the outputs of its test split to itself" in test
    (other,) = faults(write(tmp_path, asked, None, "q.json"))
    assert "no outputs file is named" in other


def test_all_faults_of_questions_and_of_outputs_are_told_by_their_places(tmp_path: Path) -> None:
    good = question("1", [{"text": "a"}])
    bad = {
        "it is a text": SECRET,
        "id is missing": {"input": SECRET},
        "input is missing": {"id": "2", "input": ""},
        "profile is null": {"id": "2", "input": "q"},
        "profile[0] is a text": {"id": "2", "input": "q", "profile": [SECRET]},
        "profile[0] has no text": question("2", [{"title": SECRET}]),
        "it has no output": question("3", []),
        "the id is that of a question before it": good,
    }
    problems = faults(write(tmp_path, [good, *bad.values()], golds("LaMP_7", {"1": "x", "2": "y"})))
    for number, (fact, problem) in enumerate(zip(bad, problems, strict=True), 1):
        assert f"question {number}: {fact}" in problem
    twice = [{"id": "1", "output": "x"}, {"id": "1", "output": "y"}]
    problems = faults(write(tmp_path, [good], {"task": "LaMP_7", "golds": [SECRET, {"id": "1"}, *twice]}))
    assert [f"golds[{i}]" in one for i, one in zip((0, 1, 3), problems, strict=True)] == [True] * 3
    for other in ({"task": "LaMP_9", "golds": []}, [], {"task": "LaMP_1"}):
        assert "is no outputs file" in faults(write(tmp_path, [good], other))[0]
    assert "the file is an object" in faults(write(tmp_path, {"a": SECRET}, golds("LaMP_7", {})))[0]


def checked(golds_text: str, predictions_text: str) -> list[tuple[str, str]]:
    """What LaMP's README asks of a file of predictions: the golds' own form, task and ids.

    Written from that page; gives pairs of a prediction and the gold output.
    """
    wanted, given = json.loads(golds_text), json.loads(predictions_text)
    assert set(given) == {"task", "golds"} and given["task"] == wanted["task"]
    assert all(set(one) == {"id", "output"} for one in given["golds"])
    outputs = {one["id"]: one["output"] for one in given["golds"]}
    assert len(outputs) == len(given["golds"]) and set(outputs) == {one["id"] for one in wanted["golds"]}
    assert all(isinstance(output, str) for output in outputs.values())
    return [(outputs[one["id"]], one["output"]) for one in wanted["golds"]]


def test_predictions_are_read_back_by_a_checker_of_lamps_documentation(tmp_path: Path) -> None:
    items = [{"title": "Rain", "text": "It fell."}]
    asked = [question("1", items), question("2", items)]
    path = write(tmp_path, asked, golds("LaMP_4", {"1": "Sun", "2": "Fog"}))
    samples = [sample for user in read(path).users for sample in user.samples]
    said = [f"answer to {sample.source_id}, “é”" for sample in samples]
    text = predictions("LaMP_4", samples, said)
    gold = (tmp_path / "dev_outputs.json").read_text()
    assert checked(gold, text) == [("answer to 1, “é”", "Sun"), ("answer to 2, “é”", "Fog")]
    settings = DataSettings.model_validate({"path": str(path), "format": "lamp"})
    assert predictions_of(settings, samples, said) == text
    (tmp_path / "again_outputs.json").write_text(text)
    again = read(path, files={"outputs": str(tmp_path / "again_outputs.json")})
    assert again.users[0].samples[-1].response == "answer to 1, “é”"
    with pytest.raises(ValueError, match="two responses"):
        predictions("LaMP_4", [Sample("q", "r", source_id=SECRET)] * 2, ["a", "b"])
