"""Generated personas: the same for a seed, distinct, consistent with themselves, and free of
leaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from milp_ray.config.models import DataSettings, SplitSettings
from milp_ray.data.leaks import Answers
from milp_ray.data.persona_words import FACTS, HOW_MANY, TASTES, TOPICS
from milp_ray.data.personas import DISTINCT, IDENTITY, generate_personas, make_persona, write_jsonl
from milp_ray.data.readers import read_users
from milp_ray.data.splits import check_no_leak, split_users
from milp_ray.errors import StorageError

SETTINGS = DataSettings(path="x", split=SplitSettings(train=0.6, validation=0.2, test=0.2))


def test_equal_seeds_give_equal_people() -> None:
    assert generate_personas(3, 7) == generate_personas(3, 7)
    assert generate_personas(3, 7) != generate_personas(3, 8)
    assert generate_personas(3, 7)[1:] == generate_personas(2, 7, first=1)


def test_everybody_is_somebody_else() -> None:
    people = [make_persona(number, 3).profile for number in range(4000)]
    assert len({tuple(person[fact] for fact in IDENTITY) for person in people}) == 4000
    users = generate_personas(40, 3)
    assert len({user.user_id for user in users}) == 40


def test_identities_never_repeat() -> None:
    steps = [make_persona(number, 1).profile for number in range(0, DISTINCT, 7)]
    assert len({tuple(person[fact] for fact in IDENTITY) for person in steps}) == len(steps)
    with pytest.raises(ValueError, match="persona"):
        make_persona(DISTINCT, 1)


def test_shape_and_time_order() -> None:
    for user in generate_personas(5, 0):
        assert len(user.samples) == 60
        assert len(user.history) == 108
        cuts = [sample.n_hist or 0 for sample in user.samples]
        assert cuts == sorted(set(cuts))
        assert cuts[0] >= 10
        for sample in user.samples:
            assert user.history[sample.n_hist or 0] == sample.response
            assert 3 <= len(sample.response.split()) <= 25
            assert sample.query.endswith("?")


def test_nothing_is_said_or_asked_twice() -> None:
    for user in generate_personas(10, 4):
        assert len({sample.query for sample in user.samples}) == len(user.samples)
        assert len(set(user.history)) == len(user.history)


@pytest.mark.parametrize("split", [(0.6, 0.2, 0.2), (0.7, 0.1, 0.2)])
def test_splits_lose_nothing_to_leaks(split: tuple[float, float, float]) -> None:
    train, validation, test = split
    users = generate_personas(40, 5)
    settings = DataSettings(path="x", split=SplitSettings(train=train, validation=validation, test=test))
    result = split_users(users, b"k" * 32, settings)
    assert len(result.users) == 40
    assert not result.skipped
    assert not result.dropped
    for user in result.users:
        check_no_leak(user)
        texts = user.final_history
        late = Answers(user.test)
        assert not any(late.inside(text) for text in texts)


def test_each_part_holds_every_topic() -> None:
    replies = {topic: values.questions for topic, values in TOPICS.items()}
    for user in split_users(generate_personas(4, 2), b"k" * 32, SETTINGS).users:
        for part, rounds in ((user.train, 3), (user.validation, 1), (user.test, 1)):
            for questions in replies.values():
                asked = [s for s in part if s.query.lower().endswith(tuple(q.lower() for q in questions))]
                assert len(asked) >= rounds


def test_answers_can_be_known_from_before() -> None:
    """Every fact and taste in a held-out answer was named before the first held-out sample."""
    for number, user in enumerate(generate_personas(20, 6)):
        persona = make_persona(number, 6)
        split = split_users([user], b"k" * 32, SETTINGS).users[0]
        before = " ".join(split.search_history).lower()
        values = {value for slot in persona.values.values() for value in slot}
        for value in values:
            assert value.lower() in before
        openings = tuple(persona.values["opening"])
        for sample in split.validation + split.test:
            assert sample.response.startswith(openings)
            named = [value for value in values - set(openings) if value.lower() in sample.response.lower()]
            assert named, "an answer that says nothing of the person"


def test_people_are_told_apart_by_their_words() -> None:
    mine, other = generate_personas(2, 0)
    assert mine.profile is not None
    said = " ".join(mine.history)
    assert all(value in said for value in mine.profile.values())
    assert mine.profile != other.profile


def test_words_are_distinct_and_patterns_known() -> None:
    for words in (*FACTS.values(), *TASTES.values()):
        assert len(set(words)) == len(words)
        assert all(word and word == word.strip() for word in words)
    assert set(HOW_MANY) == set(TASTES)
    known = dict.fromkeys((*FACTS, *TASTES), "x")
    for topic in TOPICS.values():
        for pattern in (*topic.questions, *topic.replies, *topic.remarks):
            pattern.format(**known)  # raises KeyError for a slot that nobody has


def test_other_lengths() -> None:
    (user,) = generate_personas(1, 0, rounds=2, remarks=30)
    assert len(user.samples) == 24
    assert len(user.history) == 54
    with pytest.raises(ValueError, match="too many"):
        generate_personas(1, 0, rounds=60)


def test_files_read_back_as_written(tmp_path: Path) -> None:
    users = generate_personas(3, 9)
    path = tmp_path / "deep" / "users.jsonl"
    write_jsonl(users, path)
    read = read_users(DataSettings(path=str(path)))
    assert list(read.users) == users
    assert not read.skipped
    assert [p.name for p in path.parent.iterdir()] == ["users.jsonl"]
    keys = json.loads(path.read_text(encoding="utf-8").splitlines()[0]).keys()
    assert list(keys) == ["user_id", "profile", "history", "samples"]


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_jsonl(generate_personas(1, 0), tmp_path / "file" / "users.jsonl")
