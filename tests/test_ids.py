"""Aliases, names and paths that cannot escape."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milp_ray.errors import LeakError, Problem, StorageError, StudyError, from_plain
from milp_ray.ids import alias_of, child, is_alias, new_key, trial_name

KEY = bytes(range(32))


@given(st.text(min_size=1).filter(lambda text: text.isprintable()))
def test_an_alias_is_plain_stable_and_says_nothing(user_id: str) -> None:
    alias = alias_of(user_id, KEY)
    assert is_alias(alias) and alias == alias_of(user_id, KEY)
    assert alias != alias_of(user_id, new_key())
    assert child(Path("/r"), alias).parent == Path("/r")


def test_aliases_differ() -> None:
    assert len({alias_of(str(i), KEY) for i in range(20_000)}) == 20_000


@pytest.mark.parametrize(
    "part", ["..", ".", "", "/etc/passwd", "a/b", "../../x", "a\n", "-x", ".hidden", "a" * 200]
)
def test_paths_cannot_escape(part: str) -> None:
    with pytest.raises(StorageError, match="plain file name"):
        child(Path("/r"), "ok", part)


def test_trial_names_carry_alias_and_number_only() -> None:
    assert re.fullmatch(r"u-abc-t0007-[0-9a-f]{6}", trial_name("u-abc", 7, "3:8"))
    assert trial_name("u-abc", 7, "3:8")[-6:] == trial_name("u-xyz", 9, "3:8")[-6:]
    assert trial_name("u-abc", 7, "3:8") != trial_name("u-abc", 7, "4:8")
    assert trial_name("u-abc", -1, "") == "u-abc-base"


def test_errors_survive_pickling_whole() -> None:
    for error in (
        LeakError("f", where="w", remedy="r"),
        StudyError("t", [Problem("a", "b"), Problem("c", "d")]),
    ):
        plain = from_plain(json.loads(json.dumps(error.to_plain())))
        for again in (pickle.loads(pickle.dumps(error)), plain):
            assert type(again) is type(error)
            assert str(again) == str(error) and again.problems == error.problems
