from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milp_ray.config.models import DataSettings, SplitSettings
from milp_ray.data.readers import read_users
from milp_ray.data.records import Sample, UserRecord
from milp_ray.data.timeline import cuts, in_time_order, shares

PAPER = SplitSettings()


def record(history: list[str], *samples: Sample) -> UserRecord:
    return UserRecord("a", tuple(history), samples)


def positions(*args: object) -> list[int | None]:
    return [sample.n_hist for sample in in_time_order(record(*args))]  # type: ignore[arg-type]


def test_missing_n_hist_is_found_forward_with_or_without_a_tag() -> None:
    history = ["Doctor: b", "a", "Doctor: b", "c", "Doctor: note: d"]
    assert positions(history, Sample("q", "a"), Sample("q", "b"), Sample("q", "note: d")) == [1, 2, 4]


def test_the_same_response_twice_is_two_places() -> None:
    assert positions(["a", "x", "a"], Sample("q", "a"), Sample("q", "a")) == [0, 2]


def test_a_response_that_is_nowhere_stands_where_the_one_before_does() -> None:
    found = positions(["a", "b", "c"], Sample("q", "?"), Sample("q", "b"), Sample("q", "?"), Sample("q", "c"))
    assert found == [0, 1, 1, 2]


def test_history_without_any_response_comes_before_all_samples() -> None:
    assert positions(["a", "b"], Sample("q", "x"), Sample("q", "y")) == [2, 2]


def test_given_places_are_kept_and_guide_the_search() -> None:
    found = positions(["a", "b", "a"], Sample("q", "z", n_hist=1), Sample("q", "a"))
    assert found == [1, 2]


def test_samples_are_ordered_by_place_and_ties_keep_their_order() -> None:
    samples = [Sample(str(i), "r", n_hist=n) for i, n in enumerate([2, 0, 2, 1])]
    assert [s.query for s in in_time_order(record(["x"] * 3, *samples))] == ["1", "3", "0", "2"]


def at(*places: int) -> list[Sample]:
    return [Sample(f"q{i}", f"r{i}", n_hist=place) for i, place in enumerate(places)]


def test_the_paper_cuts_10_into_7_1_2() -> None:
    assert cuts(at(*range(10)), ["x"] * 10, PAPER) == (7, 8)


def test_no_cut_between_samples_of_the_same_place() -> None:
    assert cuts(at(0, 1, 2, 3, 4, 5, 5, 5, 6, 7), ["x"] * 10, PAPER) == (5, 8)


def test_places_that_say_nothing_do_not_forbid_cuts() -> None:
    assert cuts(at(*[4] * 10), ["x"] * 4, PAPER) == (7, 8)


def test_no_cut_inside_a_dialogue() -> None:
    # Dialogues of 5 exchanges, each closed by a word of the patient's: P D P D … P.
    history, samples = [], []
    for i in range(40):
        history.append(f"Patient: q{i}")
        samples.append(Sample(f"q{i}", f"r{i}", n_hist=len(history)))
        history.append(f"Doctor: r{i}")
        if i % 5 == 4:
            history.append("Patient: bye")
    assert cuts(samples, history, PAPER) == (25, 30)  # the shares alone would say 28 and 32
    # One endless dialogue must be cut somewhere.
    endless = [text for text in history if text != "Patient: bye"]
    samples = [Sample(f"q{i}", f"r{i}", n_hist=2 * i + 1) for i in range(40)]
    assert cuts(samples, endless, PAPER) == (28, 32)


@given(st.lists(st.integers(0, 12), min_size=3, max_size=40), st.floats(0.05, 0.6), st.floats(0.05, 0.35))
def test_cuts_always_leave_three_parts(places: list[int], test: float, validation: float) -> None:
    settings = SplitSettings(train=1 - test - validation, validation=validation, test=test)
    places = sorted(places)
    first, second = cuts(at(*places), ["x"] * 12, settings)
    assert 0 < first < second < len(places)
    if len(set(places)) >= 3:
        assert places[first - 1] < places[first]
        assert places[second - 1] < places[second]


@given(st.integers(3, 10_000))
def test_shares_of_users(count: int) -> None:
    train, validation, test = shares(count, PAPER)
    assert train + validation + test == count
    assert min(train, validation, test) >= 1
    if count >= 10:
        assert abs(train - 0.7 * count) <= 1


@pytest.mark.parametrize("name", ["medical_dialogue", "ubuntu_irc", "shakespeare", "stackexchange"])
def test_places_derived_on_real_data_are_never_late(shared: Path, name: str) -> None:
    users = read_users(DataSettings(path=str(shared / "data" / name / "bench.jsonl"))).users
    right = total = 0
    for user in users:
        bare = replace(user, samples=tuple(replace(sample, n_hist=None) for sample in user.samples))
        for derived, given_by_source in zip(in_time_order(bare), user.samples, strict=True):
            assert (derived.n_hist or 0) <= (given_by_source.n_hist or 0)
            right += derived.n_hist == given_by_source.n_hist
            total += 1
    assert right >= 0.99 * total
