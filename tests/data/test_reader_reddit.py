"""MSP's dialogue files: post, response and references on a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from milp_ray.config.models import DataSettings
from milp_ray.data.readers import ReadResult, read_users
from milp_ray.data.records import Sample
from milp_ray.errors import DataError

SECRET = "zq canary zq"


def read(folder: Path, text: str | bytes, ids: str | None = None) -> ReadResult:
    path = folder / "train.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    data: dict[str, object] = {"path": str(path), "format": "reddit"}
    if ids is not None:
        (folder / "ids.txt").write_text(ids)
        data["files"] = {"users": str(folder / "ids.txt")}
    return read_users(DataSettings.model_validate(data))


def faults(folder: Path, text: str | bytes, ids: str | None = None) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(folder, text, ids)
    assert SECRET not in str(caught.value)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("separator", ["###", "#"])
def test_a_line_is_a_user_with_one_sample_after_all_its_references(tmp_path: Path, separator: str) -> None:
    lines = [["any news ?", "none yet", "\ti wait\t\tstill waiting"], ["so", "no", "x"]]
    one, two = read(tmp_path, "".join(separator.join(parts) + "\n" for parts in lines)).users
    assert (one.user_id, two.user_id) == ("line-1", "line-2")
    assert one.history == ("i wait", "still waiting")
    assert one.samples == (Sample("any news ?", "none yet", n_hist=2),)


def test_of_five_parts_only_the_persons_own_references_are_read(tmp_path: Path) -> None:
    (user,) = read(tmp_path, "p###r###mine\tmine too###similar###topic\r\n").users
    assert user.history == ("mine", "mine too")


def test_a_hash_in_a_text_ends_nothing_where_lines_have_three(tmp_path: Path) -> None:
    (user,) = read(tmp_path, "what #tag###this #tag###ref #1\n").users
    assert user.samples[0].response == "this #tag" and user.history == ("ref #1",)


def test_ids_in_a_second_file_join_the_lines_of_a_person(tmp_path: Path) -> None:
    (ann, bo) = read(tmp_path, "a###b###x\ty\nc###d###z\ne###f###y\tw\n", "ann\nbo\nann\n").users
    assert ann.history == ("x", "y", "w"), "each text once"
    assert [sample.n_hist for sample in ann.samples] == [2, 3] and bo.user_id == "bo"
    (problem,) = faults(tmp_path, "a###b###x\nc###d###z\n", f"{SECRET}\n")
    assert "has 2 lines, and data.files.users 1" in problem


def test_losses_are_counted(tmp_path: Path) -> None:
    found = read(tmp_path, "a###b###x\nc###d###\n\ne######z\n")
    assert len(found.users) == 1 and found.skipped == {"no history": 1}
    assert found.dropped == {"lines without a post or a response": 1}


def test_bad_lines_are_told_by_their_places(tmp_path: Path) -> None:
    short = f"{SECRET}###b\n".encode()
    problems = faults(tmp_path, b"a###b###x\n" + short + b"\xff###b###c\na\x07###b###c\n")
    assert [f"train.txt:{line} (byte " in one for line, one in enumerate(problems, 2)] == [True] * 3
    assert "has 2 parts between ###" in problems[0] and "is not UTF-8" in problems[1]
    (other,) = faults(tmp_path, f"{SECRET}\n" * 5)
    assert "none of its 5 lines is a line post###response###reference" in other
