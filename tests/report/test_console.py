"""What a run's last lines say of its tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from milp_ray.config import Study
from milp_ray.report.console import outcome_lines
from milp_ray.study.run import Outcome
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.tables import write_table


def a_run(tmp_path: Path, rouge: dict[str, list[float]]) -> Outcome:
    study = Study.model_validate(
        {
            "name": "s",
            "model": {"path": "m"},
            "data": {"path": "d"},
            "storage": {"path": str(tmp_path)},
            "objectives": ("loss", "rouge_l", "trainable_params"),
        }
    )
    folder = RunFolder.create(study, "f")
    rows = [
        {"user": user, "trial": i, "state": state, "loss": 2.0 + i, "rouge_l": value, "trainable_params": 8}
        for user, values in rouge.items()
        for i, (state, value) in enumerate(
            [("no memory", 0.3), ("failed", float("nan")), *(("done", value) for value in values)], -1
        )
    ]
    write_table(pd.DataFrame(rows), folder.layout.table("trials"))
    write_table(pd.DataFrame(rows[:0]), folder.layout.table("chosen"))
    return Outcome(folder, len(rouge))


def test_an_objective_that_decided_nothing_is_said_with_what_to_do(tmp_path: Path) -> None:
    users = {"u-a": [0.0] * 4, "u-b": [0.0, 0.0, 0.1, 0.0], "u-c": [0.2] * 5, "u-d": [0.0] * 3}
    text = outcome_lines(a_run(tmp_path, users)).plain
    assert "rouge_l is the same in every trial of 2 of 4 users" in text
    assert "objectives: [loss], or [loss, trainable_params], or [loss, chrf]" in text
    assert "loss is the same" not in text and "trainable_params is the same" not in text


@pytest.mark.parametrize("rouge", [{"u-a": [0.0, 0.1, 0.0, 0.2]}, {"u-a": [0.0]}, {"u-a": []}])
def test_of_others_nothing_is_said(tmp_path: Path, rouge: dict[str, list[float]]) -> None:
    assert "the same in every trial" not in outcome_lines(a_run(tmp_path, rouge)).plain
