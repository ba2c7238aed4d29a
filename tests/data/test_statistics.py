"""Statistics as in the paper's Table 1, and the regime that follows from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from milp_ray.config.models import DataSettings
from milp_ray.data.readers import read_users
from milp_ray.data.records import Sample, UserRecord
from milp_ray.data.splits import split_users
from milp_ray.data.statistics import regime_for, statistics_of
from milp_ray.errors import DataError

SETTINGS = DataSettings(path="x")


def user(name: str, samples: int) -> UserRecord:
    asked = tuple(Sample(f"what is {n}", f"it's {n}", n_hist=1, label="x") for n in range(samples))
    return UserRecord(name, ("one two three", "four"), asked)


def test_the_numbers_of_two_users_counted_by_hand() -> None:
    found = statistics_of([user("a", 2), user("b", 12)], SETTINGS)
    assert (found.users, found.samples, found.samples_per_user) == (2, 14, 7.0)
    assert (found.fewest_samples, found.most_samples, found.per_user) == (2, 12, 1)
    assert (found.history, found.words_per_text, found.words_per_query) == (2.0, 2.0, 3.0)
    assert found.words_per_response == 3.0, "it, s and a number"
    assert found.labelled == 14


def test_users_with_a_sample_or_two_need_the_regime_by_user() -> None:
    few = [user(str(n), 2) for n in range(5)]
    assert regime_for(few, SETTINGS) == "by_user"
    assert regime_for([*few, *(user(f"m{n}", 10) for n in range(5))], SETTINGS) == "per_user"
    with pytest.raises(DataError, match=r"set data\.split\.regime: by_user, for data with a few samples"):
        split_users(few, b"key", SETTINGS)


def test_the_real_users_are_those_of_their_provenance(shared: Path) -> None:
    path = shared / "data" / "medical_dialogue" / "bench.jsonl"
    found = statistics_of(read_users(DataSettings(path=str(path))).users, SETTINGS)
    assert (found.users, found.samples, round(found.history * found.users)) == (19, 1081, 2397)
