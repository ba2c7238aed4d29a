from pathlib import Path

import pytest

from milp_ray.comparison.answers import AnswerStore
from milp_ray.comparison.cells import Cell, CellCost, CellRecord, CellStore, Condition, UserResult, digest_of
from milp_ray.errors import RunFolderError
from milp_ray.tune.comparison.worker import Answer

CELL = Cell(Condition("forum", "tiny", 0), "milp+rag")
DIGEST = digest_of({"seed": 0})
RECORD = CellRecord(
    CELL,
    DIGEST,
    {"u-a": UserResult(3, {"loss": 2.5, "rouge_l": None}, {"loss": 2.75}, 31.5)},
    CellCost(12.5, 1000, 5e4, 2e5, 0.5, 24),
    "a note",
    {"u-b": "loss is not finite"},
    {"milp_ray": "1"},
)


def test_a_cell_reads_back_as_it_was_written(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    assert store.find(CELL, DIGEST) is None
    store.add(RECORD)
    assert store.find(CELL, DIGEST) == RECORD


def test_a_cell_of_other_content_is_another_cell(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    store.add(RECORD)
    assert store.find(CELL, digest_of({"seed": 1})) is None
    assert store.find(Cell(CELL.condition, "milp"), DIGEST) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}'])
def test_a_damaged_cell_says_what_to_do(tmp_path: Path, text: str) -> None:
    store = CellStore(tmp_path)
    store.add(RECORD)
    [file] = tmp_path.glob("*/*.json")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RunFolderError, match="remove the file"):
        store.find(CELL, DIGEST)


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_answers_read_back_and_are_their_owners_alone(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "answers")
    answer = Answer("milp", "u-a", "", 2, {"loss": 1.0}, {}, ("yes", "nein, danke"), 12.5, 0.25)
    store.add(answer)
    assert store.find("u-a") == answer
    assert store.missing(["u-a", "u-b"]) == ["u-b"]
    [file] = (tmp_path / "answers").iterdir()
    assert file.stat().st_mode & 0o077 == 0


def test_a_response_is_not_in_an_answers_text() -> None:
    assert "secret" not in repr(Answer("milp", "u-a", responses=("secret",)))
