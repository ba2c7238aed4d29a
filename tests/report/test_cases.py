"""Texts and ids of users are in a report only where they were asked for, and never in the run."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from milp_ray.errors import DataError, RunFolderError
from milp_ray.ids import POPULATION, alias_of
from milp_ray.report.html.cases import read_cases
from milp_ray.report.html.command import report
from milp_ray.report.html.model_check import NOT_MADE
from milp_ray.report.html.run_data import read_run
from milp_ray.report.html.user_table import drawn, user_table
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.users import load_users
from tests.report.runs import KEY, study_of, trials_of, write_run
from tests.report.test_html import Page

CANARY = "nobody may read this"
HOSTILE = '<img src=x onerror="alert(1)">{{ 7*7 }}</script>'


def lines(count: int = 3, words: str = CANARY) -> str:
    users = [
        {
            "user_id": f"person {number}",
            "profile": None,
            "history": [f"text {i} of {number}" for i in range(12)],
            "samples": [
                {
                    "query": f"question {i} {HOSTILE}",
                    "response": f"{words} {i} " + "long " * 200,
                    "n_hist": i + 1,
                }
                for i in range(10)
            ],
        }
        for number in range(count)
    ]
    return "".join(json.dumps(user) + "\n" for user in users)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    data = tmp_path / "users.jsonl"
    data.write_text(lines(), encoding="utf-8")
    study = study_of(tmp_path / "runs", data={"path": str(data)})
    made = RunFolder.create(study, load_users(study, KEY).fingerprint, KEY)
    return write_run(made, trials_of(alias_of("person 0", KEY), 0))


def test_texts_and_ids_are_there_on_request_escaped_and_cut(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    path = report(folder.root, model_check=NOT_MADE, include_text=True)
    assert path == tmp_path / "here" / "report-s-with-text.html"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    page = Page(path.read_text(encoding="utf-8"))
    assert CANARY in page.text and HOSTILE in page.text and "is person 0: " in page.text
    assert "person 1" not in page.text, "whoever is not drawn is not named"
    assert not [tag for tag, _ in page.elements if tag == "img"] and "…" in page.text
    assert "The run keeps no responses" in page.text and "milp-ray respond" in page.text
    assert {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()} == before


def test_without_it_neither_text_nor_id_is_there(folder: RunFolder) -> None:
    text = report(folder.root, model_check=NOT_MADE).read_text(encoding="utf-8")
    assert CANARY not in text and "person 0" not in text and "question 8" not in text
    assert 'id="cases"' not in text


def test_cases_are_the_last_test_samples_and_no_repr_shows_them(folder: RunFolder) -> None:
    ((found),) = read_cases(folder, drawn(user_table(read_run(folder))))
    assert (found.alias, found.user_id, found.part) == (alias_of("person 0", KEY), "person 0", "test")
    assert [case.query.split()[1] for case in found.cases] == ["8", "9"] and found.count == 2
    assert all(len(case.reference) == 601 for case in found.cases)
    assert CANARY not in repr(found) and CANARY not in repr(found.cases) and "person" not in repr(found)


def test_of_a_population_the_first_users_are_shown(folder: RunFolder) -> None:
    assert len(read_cases(folder, [POPULATION])) == 3


def test_a_report_with_texts_does_not_go_into_the_run(folder: RunFolder) -> None:
    for out in (folder.root / "r.html", folder.root / "plots" / ".." / "report.html"):
        with pytest.raises(RunFolderError, match="does not go into the run folder"):
            report(folder.root, out, model_check=NOT_MADE, include_text=True)
    assert not list(folder.root.rglob("*.html"))


@pytest.mark.parametrize(("content", "fact"), [(None, "users.jsonl"), (lines(words="other"), "has changed")])
def test_data_that_is_gone_or_changed_is_an_error_and_no_report(
    folder: RunFolder, tmp_path: Path, content: str | None, fact: str
) -> None:
    data = tmp_path / "users.jsonl"
    data.unlink()
    if content is not None:
        data.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=fact):
        report(folder.root, tmp_path / "r.html", model_check=NOT_MADE, include_text=True)
    assert not (tmp_path / "r.html").exists()
    report(folder.root, tmp_path / "r.html", model_check=NOT_MADE)
