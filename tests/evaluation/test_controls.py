"""Other-user controls: who is paired with whom, and what the scores are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milp_ray.evaluation.controls import Controlled, controlled, derangement, paired_with
from milp_ray.evaluation.metrics import chrf, persona_f1

ALIASES = st.lists(st.text("abcdef", min_size=1, max_size=5), unique=True, min_size=2, max_size=30)


@given(ALIASES, st.integers(0, 9), st.randoms())
def test_everybody_has_another_and_is_one_whatever_the_order(aliases, seed, random) -> None:  # type: ignore[no-untyped-def]
    found = derangement(aliases, seed)
    assert set(found) == set(found.values()) == set(aliases)
    assert all(user != other for user, other in found.items())
    random.shuffle(aliases)
    assert derangement(aliases, seed) == found


def test_seeds_pair_otherwise_and_one_user_alone_has_nobody() -> None:
    users = [f"u-{number}" for number in range(12)]
    assert len({tuple(sorted(derangement(users, seed).items())) for seed in range(5)}) == 5
    assert derangement(["u-1"]) == derangement([]) == {}


def test_a_user_that_joins_changes_one_pair() -> None:
    users = [f"u-{number}" for number in range(12)]
    before, after = derangement(users), derangement([*users, "u-new"])
    assert sum(before[user] != after[user] for user in users) == 1


def test_responses_are_scored_against_the_others_histories() -> None:
    responses = {"u-a": ["tea at dawn", "a red kite"], "u-b": ["snow on pines"]}
    histories = {"u-a": [["tea at dawn"], ["kite"]], "u-b": [["red snow"]]}
    found = controlled(persona_f1, responses, histories)
    assert found == {
        "u-a": Controlled(
            own=persona_f1(responses["u-a"], histories["u-a"]),
            control=persona_f1(responses["u-a"], [["red snow"]] * 2),
            other="u-b",
        ),
        "u-b": Controlled(
            own=persona_f1(responses["u-b"], histories["u-b"]),
            control=persona_f1(responses["u-b"], [["tea at dawn"]]),
            other="u-a",
        ),
    }
    assert found["u-a"].personal == found["u-a"].own - found["u-a"].control > 0


def test_any_metric_of_pairs_has_a_control() -> None:
    gold = {"u-a": ["abc", "def"], "u-b": ["xyz"]}
    found = controlled(chrf, gold, gold)
    assert {one.own for one in found.values()} == {1.0}
    assert {one.control for one in found.values()} == {0.0}


def test_users_without_responses_or_references_are_left_out() -> None:
    assert controlled(chrf, {"u-a": ["a"], "u-b": []}, {"u-a": ["a"], "u-b": ["b"]}) == {}
    with pytest.raises(ValueError, match="no references"):
        paired_with([], 1)
    assert paired_with([], 0) == [] and paired_with([1, 2], 5) == [1, 2, 1, 2, 1]
