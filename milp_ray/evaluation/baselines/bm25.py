"""BM25 over one user's texts (docs/references.md: Robertson 2009), in the form that Lucene has.

A package would be faster over millions of texts; a user has hundreds, and another set of them at
each sample. Words are the study's own (:mod:`milp_ray.data.words`), so that it retrieves in any
script.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from milp_ray.data.words import Words

K1, B = 1.5, 0.75


def scores(query: Words, texts: Sequence[Words]) -> list[float]:
    """How well each text fits a query, 0 for no word in common.

    Per word of the query, repetitions counted, with the word f times in the text and in n of N
    texts: ``log(1 + (N - n + 0.5) / (n + 0.5)) · f / (f + k1 (1 - b + b · length / mean length))``.
    """
    counts = [Counter(text) for text in texts]
    mean = sum(map(len, texts)) / max(1, len(texts))
    in_texts = {word: sum(word in count for count in counts) for word in set(query)}
    idf = {word: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for word, n in in_texts.items()}
    return [
        math.fsum(
            idf[word] * count[word] / (count[word] + K1 * (1 - B + B * len(text) / mean))
            for word in query
            if count[word]
        )
        for text, count in zip(texts, counts, strict=True)
    ]


def best(query: Words, texts: Sequence[Words], count: int) -> list[int]:
    """The places of the best texts that have a word in common, best first; of equals the newest."""
    found = scores(query, texts)
    order = sorted(range(len(texts)), key=lambda place: (-found[place], -place))
    return [place for place in order if found[place] > 0][:count]
