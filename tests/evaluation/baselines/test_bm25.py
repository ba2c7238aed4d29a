"""Retrieval scores are those of a package, and ties and strangers are settled."""

from __future__ import annotations

import pytest

from milp_ray.evaluation.baselines.bm25 import best, scores

TEXTS = [
    tuple(text.split())
    for text in (
        "my old dog likes long walks",
        "the cat would rather sleep near a warm stove all day",
        "a dog and another dog and a cat",
        "long long day",
    )
]
# bm25s 0.3.16: BM25(method="lucene", k1=1.5, b=0.75).
BM25S = {
    "dog cat": [0.29630720615386963, 0.22054682672023773, 0.6392067670822144, 0.0],
    "long day dog": [0.5926144123077393, 0.22054682672023773, 0.3786950409412384, 0.858436107635498],
    "dog dog": [0.5926144123077393, 0.0, 0.7573900818824768, 0.0],
}


@pytest.mark.parametrize("query", BM25S)
def test_scores_are_bm25s(query: str) -> None:
    assert scores(tuple(query.split()), TEXTS) == pytest.approx(BM25S[query], abs=1e-6)


def test_the_best_come_first_of_equals_the_newest_and_strangers_never() -> None:
    assert best(("dog", "cat"), TEXTS, 4) == [2, 0, 1]
    assert best(("dog", "cat"), TEXTS, 1) == [2]
    assert best(("walks",), [TEXTS[0], TEXTS[0]], 2) == [1, 0]
    assert best(("zebra",), TEXTS, 4) == [] == best(("dog",), [], 4)
