"""Answers with users' memories: the prompt that was trained on, each row with its own memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample
from milp_ray.errors import ModelError, RunFolderError, StudyError
from milp_ray.evaluation.measure import generate
from milp_ray.model.base import BaseModel, loaded
from milp_ray.report.replies import replies_view
from milp_ray.serving.respond import queries_of, respond
from milp_ray.study.run_folder import RunFolder
from tests.serving.conftest import ALIASES
from tests.study.conftest import call

QUERIES = ["what about tea?", "and the weather today"]


def test_answers_are_those_of_the_studys_own_test(run: RunFolder, base: BaseModel) -> None:
    replies = respond(run.location, QUERIES)
    assert [(r.query, r.alias) for r in replies] == [
        (q, a) for q in QUERIES for a in sorted(ALIASES.values())
    ]
    samples, prompts = [Sample(query, "") for query in QUERIES], Prompts(run.study.prompts)
    bare = generate(base, samples, prompts, 6)
    assert [reply.base for reply in replies] == [text for text in bare for _ in ALIASES]
    for alias in ALIASES.values():
        with loaded(base, run.layout.memory(alias)):
            expected = generate(base, samples, prompts, 6)
        assert [reply.memory for reply in replies if reply.alias == alias] == expected
    assert len({reply.memory for reply in replies}) > len(QUERIES), "memories differ"


def test_a_user_is_named_by_alias_or_id(run: RunFolder) -> None:
    [by_id] = respond(run.location, QUERIES[:1], ["ann"])
    [by_alias] = respond(run.location, QUERIES[:1], [ALIASES["ann"]])
    assert by_id == by_alias and by_id.alias == ALIASES["ann"]
    with pytest.raises(RunFolderError, match="1 of the users have no memory") as caught:
        respond(run.location, QUERIES, ["jane.doe@example.org"])
    assert "jane" not in str(caught.value)


def test_another_base_is_refused(run: RunFolder, base: BaseModel) -> None:
    config = Path(base.settings.path) / "config.json"
    before = config.read_text(encoding="utf-8")
    config.write_text(before.replace("{", '{"x": 1,', 1), encoding="utf-8")
    try:
        with pytest.raises(ModelError):
            respond(run.location, QUERIES)
    finally:
        config.write_text(before, encoding="utf-8")


def test_queries_come_from_the_command_line_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "queries.txt"
    file.write_text("one\ntwo\n", encoding="utf-8")
    assert queries_of(["ann", "one query"], None, all_users=False) == (["ann"], ["one query"])
    assert queries_of(["one query"], None, all_users=True) == ([], ["one query"])
    assert queries_of(["ann"], file, all_users=False) == (["ann"], ["one", "two"])
    with pytest.raises(StudyError, match="3 words stand after the run"):
        queries_of(["ann", "not", "quoted"], None, all_users=False)
    with pytest.raises(StudyError, match="cannot be read"):
        queries_of(["ann"], tmp_path / "none.txt", all_users=False)


def test_no_query_is_no_question(run: RunFolder) -> None:
    with pytest.raises(StudyError, match="there is no query"):
        respond(run.location, ["  "])


def test_the_command_prints_them_side_by_side(run: RunFolder) -> None:
    code, output = call("respond", run.location, "--all-users", QUERIES[0], "--max-new-tokens", "3")
    assert code == 0 and QUERIES[0] in output and output.count("u-") == 3
    console = Console(width=60, record=True)
    console.print(replies_view(respond(run.location, QUERIES, ["bob"])))
    shown = console.export_text()
    assert all(query in shown for query in QUERIES)
