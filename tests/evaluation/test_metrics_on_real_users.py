"""ROUGE and Persona-F1 of real users' texts, against a computation of a few lines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from milp_ray.config.models import DataSettings
from milp_ray.data.readers import read_users
from milp_ray.data.records import UserRecord
from milp_ray.evaluation.controls import controlled
from milp_ray.evaluation.metrics import STOP_WORDS, persona_f1, rouge

DATA = ("medical_dialogue", "ubuntu_irc", "shakespeare", "stackexchange")
USERS, SAMPLES = 10, 5  # of each of four sets: 200 samples


@cache
def users_of(folder: Path, name: str) -> tuple[UserRecord, ...]:
    users = read_users(DataSettings(path=str(folder / "data" / name / "bench.jsonl"))).users
    return tuple(user for user in users if len(user.samples) > SAMPLES)[:USERS]


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def f1(shared: float, one: int, other: int) -> float:
    return 2 * shared / (one + other) if shared else 0.0


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    row = [0] * (len(other) + 1)
    for word in one:
        above = row[:]
        for at, candidate in enumerate(other, 1):
            row[at] = above[at - 1] + 1 if word == candidate else max(above[at], row[at - 1])
    return row[-1]


@pytest.mark.parametrize("name", DATA)
def test_rouge_is_what_a_few_lines_compute(shared: Path, name: str) -> None:
    """Each response beside the next one of the same user, so that some words are shared."""
    pairs = [
        (user.samples[at].response, user.samples[at + 1].response)
        for user in users_of(shared, name)
        for at in range(SAMPLES)
    ]
    assert len(pairs) == USERS * SAMPLES
    found = [rouge([one], [other]) for one, other in pairs]
    for (one, other), score in zip(pairs, found, strict=True):
        a, b = words(one), words(other)
        shared_words = (Counter(a) & Counter(b)).total()
        assert score["rouge_1"] == pytest.approx(f1(shared_words, len(a), len(b)))
        assert score["rouge_l"] == pytest.approx(f1(common_subsequence(a, b), len(a), len(b)))
    assert sum(score["rouge_l"] > 0 for score in found) > 10, "a test of zeros shows nothing"


@pytest.mark.parametrize("name", DATA)
def test_persona_f1_is_what_a_few_lines_compute_and_exceeds_its_control(shared: Path, name: str) -> None:
    users = users_of(shared, name)
    gold = {user.user_id: [sample.response for sample in user.samples[-SAMPLES:]] for user in users}
    histories = {
        user.user_id: [user.history[: sample.n_hist] for sample in user.samples[-SAMPLES:]] for user in users
    }
    for user, texts in gold.items():
        for response, history in zip(texts, histories[user], strict=True):
            said, written = (
                set(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("’", "'"))) - STOP_WORDS
                for text in (response, "\n".join(history))
            )
            expected = f1(len(said & written), len(said), len(written))
            assert persona_f1([response], [history]) == pytest.approx(expected)
    found = controlled(persona_f1, gold, histories).values()
    assert len(found) == USERS
    own, control = (sum(getattr(one, side) for one in found) / USERS for side in ("own", "control"))
    assert own > control > 0
