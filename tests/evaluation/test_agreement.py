"""Agreement with people, from numbers and from CSV files of all kinds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from milp_ray.cli import app
from milp_ray.errors import JudgeError
from milp_ray.evaluation.agreement import agreement, read_verdicts
from milp_ray.evaluation.win_rate import verdicts

HUMAN = [1, 1, 0, -1, 1, 0, 1, -1, 1, 1]
JUDGE = [1, 1, 1, -1, 1, 0, 1, 1, 1, 0]


def table(folder: Path, text: str | bytes) -> Path:
    path = folder / "people.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def faults(path: Path) -> list[str]:
    with pytest.raises(JudgeError) as caught:
        read_verdicts(path)
    return [f"{problem.where}: {problem.fact}" for problem in caught.value.problems]


def test_the_worked_value() -> None:
    found = agreement(HUMAN, JUDGE)
    assert found.pearson == pytest.approx(0.48996, abs=5e-6)
    assert (found.accuracy, found.count, found.left_out) == (0.7, 10, 0)


def test_a_judge_without_a_verdict_is_left_out_and_told() -> None:
    found = agreement([1, -1, 0], verdicts([8, None, 5], [7, 3, 5]))
    assert (found.count, found.left_out, found.accuracy) == (2, 1, 1.0)
    assert "1 without the judge's left out" in str(found)


def test_a_side_that_never_changes_has_no_correlation() -> None:
    found = agreement([1, 1], [1, 0])
    assert math.isnan(found.pearson) and found.accuracy == 0.5 and "undefined" in str(found)
    assert agreement([], []).count == 0


@pytest.mark.parametrize(
    "text",
    [
        "human,judge\n1,1\n0,-1\n",
        "\ufeffitem;Judge;note; Human \r\na;1;said, so;1\r\n\r\nb;−1;;0.0\r\n",
        'judge\thuman\n1\t+1\n"-1"\t0',
        'human,judge,why\n1,1,"two\nlines"\n0,-1.0,\n',
    ],
)
def test_what_spreadsheets_write_is_read(tmp_path: Path, text: str) -> None:
    assert read_verdicts(table(tmp_path, text)) == ([1, 0], [1, -1])


def test_all_faults_of_a_table_are_told_at_once_and_no_cell(tmp_path: Path) -> None:
    text = "human,judge\n1,secret\n2,\n1,1,1\n0,1\nsecret\n"
    found = faults(table(tmp_path, text))
    assert found == [
        "line 2, column judge: is no label",
        "line 3, column human: is no label",
        "line 3, column judge: is empty",
        "line 4: has 3 cells",
        "line 6: has 1 cells",
    ]


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"human,judge\n", "has no row"),
        (b"human,human\n1,1\n", "has 2 columns human"),
        (b"a,b\n1,1\n", "has 0 columns human"),
        (b"human,judge\n\xff,1\n", "is not UTF-8 (byte 12)"),
        (b"human,judge\n1,\x00\n", "NUL"),
        (b'human,judge\n"1,1\n', "is not CSV"),
    ],
)
def test_what_is_no_such_table_is_told_as_what_it_is(tmp_path: Path, text: bytes, fact: str) -> None:
    assert fact in faults(table(tmp_path, text))[0]


def test_a_path_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert "no such file" in faults(tmp_path / "none.csv")[0]
    assert "is not a regular file" in faults(tmp_path)[0]


def test_a_long_list_of_faults_ends(tmp_path: Path) -> None:
    found = faults(table(tmp_path, "human,judge\n" + "x,x\n" * 30))
    assert len(found) == 21 and found[-1] == ": and 40 more"


def test_the_command_prints_both_numbers_or_the_faults(tmp_path: Path) -> None:
    rows = "".join(f"{one},{other}\n" for one, other in zip(HUMAN, JUDGE, strict=True))
    done = CliRunner().invoke(app, ["judge", "agreement", str(table(tmp_path, "human,judge\n" + rows))])
    assert done.exit_code == 0 and done.output == "Pearson r 0.490, accuracy 0.700 (10 verdicts)\n"
    assert CliRunner().invoke(app, ["judge", "agreement", str(tmp_path / "none.csv")]).exit_code == 2
