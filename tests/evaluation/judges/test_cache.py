"""Answers on the disk: whole lines, no text, and what is torn costs one answer."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from milp_ray.errors import StorageError
from milp_ray.evaluation.judges.cache import AnswerCache


def test_answers_are_there_again(tmp_path: Path) -> None:
    path = tmp_path / "a" / "answers.jsonl"
    cache = AnswerCache(path)
    assert not path.exists() and cache.size == 0
    keys = [cache.key("judge", f"prompt {number}") for number in range(3)]
    for number, key in enumerate(keys):
        cache.add(key, number + 0.5)
    again = AnswerCache(path)
    assert [again.get(key) for key in keys] == [0.5, 1.5, 2.5] and again.damaged == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_keys_differ_by_judge_content_and_secret_and_tell_nothing() -> None:
    cache = AnswerCache()
    keys = {
        cache.key("a", "b"),
        cache.key("ab", ""),
        cache.key("a", "c"),
        AnswerCache(None, b"s").key("a", "b"),
    }
    assert len(keys) == 4 and all(len(key) == 64 for key in keys)


def test_what_is_torn_or_damaged_is_passed_over_and_the_next_answer_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    cache = AnswerCache(path)
    one, other = cache.key("j", "1"), cache.key("j", "2")
    cache.add(one, 1.0)
    bad = [b"[1]", b"\xff", b'{"key": "x", "answer": 3}', json.dumps({"key": other, "answer": None}).encode()]
    with path.open("ab") as file:
        file.write(b"\n".join([*bad, b'{"key": "' + other.encode()[:20]]))
    again = AnswerCache(path)
    assert (again.get(one), again.get(other), again.damaged) == (1.0, None, 5)
    again.add(other, 2.0)
    assert AnswerCache(path).get(other) == 2.0


def test_many_writers_tear_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    caches = [AnswerCache(path) for _ in range(4)]
    keys = [caches[0].key("j", str(number)) for number in range(80)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: caches[n % 4].add(keys[n], float(n)), range(80)))
    found = AnswerCache(path)
    assert [found.get(key) for key in keys] == [float(number) for number in range(80)] and not found.damaged


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/dev/full").exists(), reason="no full device")
def test_a_full_disk_is_told_and_the_answer_still_counts(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    cache = AnswerCache(path)
    path.symlink_to("/dev/full")
    key = cache.key("j", "1")
    with pytest.raises(StorageError, match="No space left"):
        cache.add(key, 1.0)
    assert cache.get(key) == 1.0


def test_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        AnswerCache(tmp_path)
