"""A run has the same prompts on every worker and every day, and one of an earlier version keeps its
own."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from milp_ray.config import Study
from milp_ray.data import chat_template
from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample
from milp_ray.study import prompt_frame
from milp_ray.study.run_folder import RunFolder

DATED = (
    "It is {{ strftime_now('%d %b %Y') }}.{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
SAMPLE = Sample("who painted the gate?", "the miller")


@pytest.fixture
def study(shallow_model: Path, tmp_path: Path) -> Study:
    folder = Path(shutil.copytree(shallow_model, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(DATED, encoding="utf-8")
    return Study.model_validate(
        {
            "name": "s",
            "model": {"path": str(folder)},
            "data": {"path": "d"},
            "prompts": {"style": "chat"},
            "storage": {"path": str(tmp_path / "runs")},
        }
    )


def on(day: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def today() -> datetime.date:
        return datetime.date(2026, 3, day)

    monkeypatch.setattr(chat_template, "today", today)
    monkeypatch.setattr(prompt_frame, "today", today)


def prompt_of(study: Study) -> str:
    tokenizer = AutoTokenizer.from_pretrained(study.model.path)
    return str(tokenizer.decode(Prompts(study.prompts).encode_prompt(tokenizer, SAMPLE)))


def test_the_day_on_which_a_run_begins_is_that_of_all_its_prompts(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(1, monkeypatch)
    run = RunFolder.create(study, "f", prompts=prompt_frame.prompt_frame(study))
    first = prompt_of(run.study)
    assert first == "It is 01 Mar 2026.user: who painted the gate?</s>assistant: "
    kept = json.loads((run.root / "run.json").read_text())["prompts"]
    assert kept["date"] == "2026-03-01" and kept["prompt"] == first.replace(SAMPLE.query, "{query}")
    on(2, monkeypatch)
    assert "02 Mar 2026" in prompt_of(study), "a new run"
    again = RunFolder.of(study)  # in which prompts.date is still null: no difference
    assert again is not None and prompt_of(again.study) == first
    assert prompt_of(RunFolder.open(run.root).pinned().study) == first


def test_a_day_may_be_chosen(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    on(1, monkeypatch)
    chosen = study.prompts.model_copy(update={"date": datetime.date(2025, 12, 24)})
    study = study.model_copy(update={"prompts": chosen})
    run = RunFolder.create(study, "f", prompts=prompt_frame.prompt_frame(study))
    assert "24 Dec 2025" in prompt_of(run.study)


def test_nothing_is_rendered_for_the_plain_phrase(study: Study) -> None:
    plain = study.model_copy(update={"prompts": study.prompts.model_copy(update={"style": "plain"})})
    assert prompt_frame.prompt_frame(plain) == {"encoding": 2}


def test_a_run_of_an_earlier_version_goes_on_as_it_was(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    on(5, monkeypatch)
    trims = DATED.replace("m.content", "m.content | trim")
    (Path(study.model.path) / "chat_template.jinja").write_text(trims, encoding="utf-8")
    run = RunFolder.create(study, "f", prompts=prompt_frame.prompt_frame(study))
    new = Prompts(run.study.prompts)
    meta = json.loads((run.root / "run.json").read_text())
    del meta["prompts"]
    (run.root / "run.json").write_text(json.dumps({**meta, "created": "2026-02-27T23:59:00+0100"}))
    old = RunFolder.open(run.root).pinned()
    assert (old.study.prompts.encoding, old.study.prompts.date) == (1, datetime.date(2026, 2, 27))
    tokenizer = AutoTokenizer.from_pretrained(study.model.path)
    sample = Sample(" who painted the gate? ", "the miller ")
    texts = [
        tokenizer.decode(prompts.encode_sample(tokenizer, sample).input_ids)
        for prompts in (Prompts(old.study.prompts), new)
    ]
    assert texts == [
        "It is 27 Feb 2026.user:  who painted the gate? </s>assistant: the miller </s>",
        "It is 05 Mar 2026.user: who painted the gate?</s>assistant: the miller</s>",
    ]
