"""PersonaMem: a question sees the conversation before it and nothing after."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from milp_ray.config.models import DataSettings
from milp_ray.data.readers import ReadResult, read_users
from milp_ray.data.splits import split_users
from milp_ray.errors import DataError

SECRET = "zq canary zq"
MESSAGES = [
    {"role": "system", "content": "Current user persona: likes tea."},
    {"role": "user", "content": "User: I drink tea."},
    {"role": "assistant", "content": "How nice."},
    {"role": "user", "content": "And coffee since today."},
    {"role": "assistant", "content": "Assistant: I see."},
]
OPTIONS = ["(a) Tea, as you\nsaid.", "(b) It's milk.", '(c) "Water".']
ROW = {
    "persona_id": 0,
    "question_id": "q1",
    "user_question_or_message": "What do I drink?",
    "correct_answer": "(a)",
    "all_options": repr(OPTIONS),
    "shared_context_id": "c1",
    "end_index_in_shared_context": 3,
}


def write(folder: Path, rows: list[dict[str, object]], contexts: list[object] | None = None) -> Path:
    path = folder / "questions_32k.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerows(rows)
    lines = [{"c1": MESSAGES}] if contexts is None else contexts
    (folder / "shared_contexts_32k.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path: Path, **data: object) -> ReadResult:
    return read_users(DataSettings.model_validate({"path": str(path), "format": "personamem", **data}))


def faults(path: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(path)
    assert SECRET not in str(caught.value)
    return [str(problem) for problem in caught.value.problems]


def test_a_question_knows_the_messages_before_its_end_and_none_is_known_after_the_last(
    tmp_path: Path,
) -> None:
    later = {**ROW, "question_id": "q2", "end_index_in_shared_context": 4, "correct_answer": "(c)"}
    (user,) = read(write(tmp_path, [ROW, later])).users
    assert user.history == ("User: I drink tea.", "Assistant: How nice.", "User: And coffee since today.")
    assert user.profile == {"persona": "Current user persona: likes tea."}
    first, second = user.samples
    assert (first.query, first.response, first.n_hist) == ("What do I drink?", "Tea, as you\nsaid.", 2)
    assert (first.label, first.source_id) == ("(a)", "q1")
    assert first.choices == ("Tea, as you\nsaid.", "It's milk.", '"Water".')
    assert (second.response, second.n_hist, second.label) == ('"Water".', 3, "(c)")


def test_nothing_after_a_questions_end_is_learnt_before_it_is_asked(tmp_path: Path) -> None:
    """Through the split: what stage 1 of a trial sees ends before the first held-out question."""
    words = [{"role": "user" if i % 2 else "assistant", "content": f"word number {i}"} for i in range(40)]
    ends = (6, 8, 10, 12, 14, 16, 18, 20, 22, 24)
    rows = [{**ROW, "question_id": f"q{end}", "user_question_or_message": f"which {end}?",
             "end_index_in_shared_context": end} for end in ends]  # fmt: skip
    path = write(tmp_path, rows, [{"c1": words}])
    data = DataSettings(path=str(path), format="personamem")
    (user,) = split_users(read_users(data).users, b"key", data).users
    assert len(user.history) == 24 and "Assistant: word number 24" not in user.history
    assert user.search_cut == min(sample.n_hist or 0 for sample in user.validation + user.test)
    assert [sample.n_hist for sample in user.test] == [22, 24]


def test_json_options_gzip_and_a_named_contexts_file(tmp_path: Path) -> None:
    plain = read(write(tmp_path, [{**ROW, "all_options": json.dumps(OPTIONS)}]))
    packed = tmp_path / "q.csv.gz"
    packed.write_bytes(gzip.compress((tmp_path / "questions_32k.csv").read_bytes()))
    contexts = str(tmp_path / "shared_contexts_32k.jsonl")
    assert read(packed, files={"contexts": contexts}) == plain
    (tmp_path / "questions_1M.csv").write_bytes((tmp_path / "questions_32k.csv").read_bytes())
    (problem,) = faults(tmp_path / "questions_1M.csv")
    assert "there is no shared_contexts_1M.jsonl beside it" in problem and "data.files.contexts" in problem


def test_a_context_that_nobody_may_have_read_is_counted(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "shared_context_id": "c2", "end_index_in_shared_context": 1}]
    found = read(write(tmp_path, rows, [{"c1": MESSAGES}, {"c2": MESSAGES}]))
    assert len(found.users) == 1 and found.skipped == {"no history": 1}


def test_all_faults_of_questions_and_of_contexts_are_told_by_their_places(tmp_path: Path) -> None:
    bad: dict[str, dict[str, object]] = {
        "its context is not in the contexts file": {"shared_context_id": SECRET},
        "it has no question": {"user_question_or_message": " "},
        "end_index_in_shared_context is out of range": {"end_index_in_shared_context": 6},
        "end_index_in_shared_context is out": {"end_index_in_shared_context": SECRET},
        "correct_answer is none of its options": {"correct_answer": "(d)"},
        "all_options is no list": {"all_options": "3"},
        "all_options[0] is no option": {"all_options": json.dumps([SECRET])},
        "is neither JSON nor a Python literal": {"all_options": SECRET},
    }
    problems = faults(write(tmp_path, [ROW, *({**ROW, **one} for one in bad.values())]))
    for fact, problem in zip(bad, problems, strict=True):
        assert "questions_32k.csv:" in problem and fact in problem
    contexts: list[object] = [{"c1": MESSAGES}, {"c1": []}, {"a": 1, "b": 2}, {"c": SECRET}]
    contexts.append({"d": [{"role": SECRET}]})
    problems = faults(write(tmp_path, [ROW], contexts))
    told = ("id is that of a line before it", "of another shape", "messages are a text", "is no known role")
    for fact, problem in zip(told, problems, strict=True):
        assert "shared_contexts_32k.jsonl:" in problem and fact in problem
