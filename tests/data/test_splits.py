from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milp_ray.config.models import DataSettings, SplitSettings
from milp_ray.data import splits
from milp_ray.data.readers import read_users
from milp_ray.data.records import Sample, UserRecord
from milp_ray.data.splits import (
    PopulationSplit,
    check_no_leak,
    check_population,
    split_population,
    split_user,
    split_users,
)
from milp_ray.errors import DataError
from milp_ray.ids import alias_of

KEY = b"k" * 32
PER_USER = DataSettings(path="users.jsonl")
BY_USER = DataSettings(path="users.jsonl", split=SplitSettings(regime="by_user"))


def person(name: str, count: int = 10, remarks: int = 1) -> UserRecord:
    """A user whose history is, before each response, some remarks; every text is unlike all
    others."""
    history: list[str] = []
    samples = []
    for i in range(count):
        history += [f"remark {j} of {name} before {i}" for j in range(remarks)]
        response = f"answer{i} by{name} words{i}x{name} more{i}x{name}"
        samples.append(Sample(f"question {i} put to {name} here", response, n_hist=len(history)))
        history.append(f"Doctor: {response}")
    return UserRecord(name, tuple(history), tuple(samples))


def test_a_user_is_cut_in_time_order() -> None:
    user = person("ann")
    split = split_user(user, "u-a", PER_USER)
    assert split.train + split.validation + split.test == user.samples
    assert [len(part) for part in (split.train, split.validation, split.test)] == [7, 1, 2]
    assert split.history == user.history
    assert split.search_history == user.history[: user.samples[7].n_hist]
    assert split.final_history == user.history[: user.samples[8].n_hist]


def test_max_history_keeps_the_newest_texts_before_each_cut() -> None:
    user = person("ann", 20)
    split = split_user(user, "u-a", PER_USER.model_copy(update={"max_history": 5}))
    validation, test = user.samples[14].n_hist, user.samples[16].n_hist
    assert validation and test
    assert split.search_history == user.history[validation - 5 : validation]
    assert split.final_history == user.history[test - 5 : test]
    for sample in split.validation + split.test:
        assert split.history[sample.n_hist or 0].endswith(sample.response)


def test_max_samples_keeps_the_newest() -> None:
    user = person("ann", 20)
    split = split_user(user, "u-a", PER_USER.model_copy(update={"max_samples": 10}))
    assert split.train + split.validation + split.test == user.samples[10:]


def test_min_samples_counts_what_the_user_has_not_what_is_kept() -> None:
    split = split_user(person("ann", 10), "u-a", PER_USER.model_copy(update={"max_samples": 5}))
    assert [len(part) for part in (split.train, split.validation, split.test)] == [3, 1, 1]


SKIPPED = {
    "fewer than 10 samples": person("zoe", 9),
    splits.NO_HISTORY_LEFT: UserRecord(
        "zoe", ("x",), tuple(replace(sample, n_hist=0) for sample in person("zoe").samples)
    ),
    splits.ALL_REPEATED: UserRecord("zoe", ("x",), (Sample("hi", "yo", n_hist=1),) * 12),
}


@pytest.mark.parametrize("reason, user", SKIPPED.items(), ids=["few", "no history", "all the same"])
def test_unusable_users_are_skipped_and_counted(reason: str, user: UserRecord) -> None:
    result = split_users([person("ann"), user], KEY, PER_USER)
    assert [split.alias for split in result.users] == [alias_of("ann", KEY)]
    assert result.skipped == {reason: 1}
    with pytest.raises(DataError) as caught:
        split_user(user, "u-z", PER_USER)
    assert caught.value.problems[0].fact == reason
    with pytest.raises(DataError, match="no user can be used") as caught:
        split_users([user], KEY, PER_USER)
    assert reason in str(caught.value)
    assert "lower data.min_samples" in str(caught.value)
    assert ("write samples down once" in str(caught.value)) == (reason == splits.ALL_REPEATED)
    assert ("by_user" in str(caught.value)) == (reason == "fewer than 10 samples")


def test_a_history_text_with_a_later_answer_is_removed_and_counted() -> None:
    user = person("ann")
    answer = user.samples[9].response
    history = (f"Me: {answer.upper()}!", *user.history)
    samples = tuple(replace(s, n_hist=(s.n_hist or 0) + 1) for s in user.samples)
    result = split_users([replace(user, history=history, samples=samples)], KEY, PER_USER)
    assert result.users[0] == split_user(user, result.users[0].alias, PER_USER)
    assert result.dropped == {splits.TEXTS_DROPPED: 1}


def test_a_train_sample_that_repeats_a_test_sample_is_dropped_and_counted() -> None:
    user = person("ann", 20)
    early = replace(user.samples[19], n_hist=user.samples[3].n_hist)
    samples = (*user.samples[:3], early, *user.samples[4:])
    result = split_users([replace(user, samples=samples)], KEY, PER_USER)
    (split,) = result.users
    assert result.dropped == {splits.SAMPLES_DROPPED: 1}
    assert len(split.train) == 13
    assert split.test == user.samples[16:]


QUERIES = {
    "one, long": lambda i: "Write the next message as this person would",
    "three": lambda i: f"Write the next message number {i % 3} as this person",
    "half": lambda i: "Write the next message as this person would" if i % 2 else f"What of number {i} then?",
    "short": lambda i: "next",
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_samples_that_ask_the_same_are_all_kept(query: Callable[[int], str]) -> None:
    user = person("ann", 20)
    asked = replace(user, samples=tuple(replace(s, query=query(i)) for i, s in enumerate(user.samples)))
    result = split_users([asked], KEY, PER_USER)
    (split,) = result.users
    assert (len(split.train), len(split.validation), len(split.test)) == (14, 2, 4)
    assert not result.skipped and not result.dropped


def test_a_run_of_the_first_rules_drops_what_it_dropped() -> None:
    user = person("ann", 20)
    samples = tuple(replace(s, query=QUERIES["half"](i)) for i, s in enumerate(user.samples))
    first = PER_USER.model_copy(update={"text_rules": 1})
    split = split_user(replace(user, samples=samples), "u-a", first)
    assert (len(split.train), len(split.validation), len(split.test)) == (7, 1, 4)
    check_no_leak(split, rules=1)


@st.composite
def messy(draw: st.DrawFn) -> UserRecord:
    """A user with few distinct texts, so that answers recur everywhere."""
    phrase = st.sampled_from([f"phrase {i} recurs in many places here" for i in range(8)] + ["yes", "no"])
    history = draw(st.lists(phrase, min_size=1, max_size=25))
    n_hist = st.none() | st.integers(0, len(history))
    samples = draw(
        st.lists(st.builds(Sample, phrase, phrase, st.none() | phrase, n_hist), min_size=3, max_size=25)
    )
    unique = [replace(s, query=f"{s.query} {i}") for i, s in enumerate(samples)]
    return UserRecord("ann", tuple(history), tuple(draw(st.sampled_from([samples, unique]))))


limit = st.none() | st.integers(1, 12)


@settings(max_examples=300, deadline=None)
@given(messy(), limit, limit)
def test_every_split_is_ordered_bounded_and_without_leaks(
    user: UserRecord, max_history: int | None, max_samples: int | None
) -> None:
    changes = {"min_samples": 3, "max_history": max_history, "max_samples": max_samples}
    try:
        split = split_user(user, "u-a", PER_USER.model_copy(update=changes))
    except DataError:
        return
    check_no_leak(split)
    places = [s.n_hist for s in split.train + split.validation + split.test]
    assert None not in places
    assert places == sorted(places, key=lambda place: place or 0)
    assert min(len(split.train), len(split.validation), len(split.test)) >= 1
    assert 0 < split.search_cut == split.validation[0].n_hist
    assert split.search_cut <= split.final_cut == split.test[0].n_hist
    if max_samples:
        assert len(places) <= max_samples
    if max_history:
        assert max(len(split.search_history), len(split.final_history)) <= max_history
    # every text that holds a held-out answer stands at or after the sample it would give away
    for part in (split.validation, split.test):
        for sample in part:
            if len(sample.response) > 20:
                assert sample.response not in split.history[: sample.n_hist]


def test_the_first_usable_users_are_taken() -> None:
    users = [person("a", 3), *(person(name) for name in "bcd")]
    chosen = split_users(users, KEY, PER_USER.model_copy(update={"users": 2}))
    assert [split.alias for split in chosen.users] == sorted(alias_of(name, KEY) for name in "bc")
    assert chosen.skipped == {"fewer than 10 samples": 1}
    assert len(split_users(users, KEY, PER_USER.model_copy(update={"users": 9})).users) == 3


def test_users_are_named_by_id_or_alias() -> None:
    users = [person(name) for name in "abc"]
    wanted = ("c", alias_of("a", KEY))
    chosen = split_users(users, KEY, PER_USER.model_copy(update={"users": wanted}))
    assert [split.alias for split in chosen.users] == sorted(alias_of(name, KEY) for name in "ac")


def test_wrong_names_are_reported_by_position_only() -> None:
    wanted = ("a", "canary id", alias_of("canary id", KEY), alias_of("a", KEY))
    with pytest.raises(DataError) as caught:
        split_users([person("a")], KEY, PER_USER.model_copy(update={"users": wanted}))
    assert [problem.where for problem in caught.value.problems] == [f"data.users[{i}]" for i in (1, 2, 3)]
    assert "canary" not in str(caught.value)
    assert "same user as data.users[0]" in str(caught.value)


@pytest.mark.parametrize(
    "split", [lambda u: split_users(u, KEY, PER_USER), lambda u: split_population(u, KEY, BY_USER, 0)]
)
def test_alias_collisions_are_errors(monkeypatch: pytest.MonkeyPatch, split: object) -> None:
    monkeypatch.setattr(splits, "alias_of", lambda user_id, key: "u-" + "a" * 13)
    with pytest.raises(DataError, match="alias of another user"):
        split([person("a"), person("b"), person("c")])  # type: ignore[operator]


def test_nothing_of_a_user_is_in_a_repr() -> None:
    result = split_users([person("canary")], KEY, PER_USER)
    assert "canary" not in repr(result)


def everyone(population: PopulationSplit) -> list[list[str]]:
    return [[u.alias for u in part] for part in (population.train, population.validation, population.test)]


def test_a_population_is_divided_whole_by_aliases_whatever_the_files_order() -> None:
    users = [person(f"p{i}", 2) for i in range(20)]
    one = split_population(users, KEY, BY_USER, 7)
    assert [len(part) for part in everyone(one)] == [14, 2, 4]
    assert sorted(alias for part in everyone(one) for alias in part) == sorted(
        alias_of(u.user_id, KEY) for u in users
    )
    assert all(part == sorted(part) for part in everyone(one))
    assert everyone(split_population(users[::-1], KEY, BY_USER, 7)) == everyone(one)
    assert everyone(split_population(users, KEY, BY_USER, 8)) != everyone(one)
    other_key = split_population(users, b"o" * 32, BY_USER, 7)
    found, others = ({u.history for u in population.test} for population in (one, other_key))
    assert found != others, "who knows ids and seed must not know the parts"


def test_what_the_parts_of_a_population_hold() -> None:
    population = split_population([person(f"p{i}", 3) for i in range(5)], KEY, BY_USER, 0)
    (held_out,) = population.test
    assert (held_out.train, held_out.validation, len(held_out.test)) == ((), (), 3)
    assert held_out.search_history == held_out.final_history == held_out.history[:1]
    assert (len(population.validation[0].validation), population.validation[0].test) == (3, ())
    for user in population.train:
        assert (len(user.train), user.validation, user.test) == (3, (), ())
        assert user.search_history == user.history


def test_held_out_samples_before_any_history_are_dropped_and_users_without_are_skipped() -> None:
    users = [person(f"p{i}", 3, remarks=0) for i in range(4)]
    nothing = UserRecord("none", ("x",), (Sample("q", "r", n_hist=0),))
    population = split_population([*users, nothing], KEY, BY_USER, 0)
    assert population.skipped == {splits.NO_HISTORY: 1}
    assert population.dropped == {splits.SAMPLES_TOO_EARLY: 2}
    assert len(population.test[0].test) == 2
    assert population.test[0].search_cut == 1


def test_train_samples_with_held_out_answers_are_dropped() -> None:
    users = [person(f"p{i}", 3) for i in range(6)]
    population = split_population(users, KEY, BY_USER, 0)
    answer = population.test[0].test[0].response
    tainted = [replace(u, samples=(*u.samples, Sample("q", f"I quote: {answer}", n_hist=1))) for u in users]
    again = split_population(tainted, KEY, BY_USER, 0)
    check_population(again)
    assert again.dropped[splits.OTHERS_ANSWERS] >= len(again.train)
    assert all(len(user.train) == 3 for user in again.train)


def test_a_population_needs_three_users() -> None:
    with pytest.raises(DataError, match="2 users can be used") as caught:
        split_population([person("a"), person("b")], KEY, BY_USER, 0)
    assert "at least 3" in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.lists(messy(), min_size=3, max_size=8), st.integers(0, 99), limit)
def test_every_population_is_without_leaks(
    records: list[UserRecord], seed: int, max_history: int | None
) -> None:
    users = [replace(user, user_id=f"p{i}") for i, user in enumerate(records)]
    try:
        population = split_population(
            users, KEY, BY_USER.model_copy(update={"max_history": max_history}), seed
        )
    except DataError:
        return
    check_population(population)
    for user in population.validation + population.test:
        assert user.search_cut > 0
        if max_history:
            assert len(user.search_history) <= max_history


REAL = {
    # users kept, users skipped, most texts and samples that may be dropped
    "medical_dialogue": (19, {}, 20),
    "ubuntu_irc": (66, {}, 35),
    "shakespeare": (22, {}, 5),
    "stackexchange": (12, {"fewer than 10 samples": 15}, 0),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data(shared: Path, name: str) -> None:
    kept, skipped, most_dropped = REAL[name]
    settings = PER_USER.model_copy(update={"path": str(shared / "data" / name / "bench.jsonl")})
    users = read_users(settings).users
    result = split_users(users, KEY, settings)
    for split in result.users:
        check_no_leak(split)
    assert (len(result.users), dict(result.skipped)) == (kept, skipped)
    assert sum(result.dropped.values()) <= most_dropped
    check_population(split_population(users, KEY, settings, 0))
