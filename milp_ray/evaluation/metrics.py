"""Text metrics of responses: ROUGE against the given ones, Persona-F1 against the user's history.

Everything is a share in [0, 1]; multiply by 100 where it is shown (the paper's tables do). ROUGE splits text
into runs of a-z and 0-9 and so says nothing about other scripts. Win rates need a judge and are not covered.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

# Frozen: a change here changes every Persona-F1 ever reported.
_STOP = """
a about after again all also am an and any are as at be because been before being but by can could did do does
doing don't down for from further had has have having he her here hers him his how i i'm if in into is it it's
its just me more most my no nor not of off on once only or other our out over own s same she should so some
such t than that the their them then there these they this those through to too under until up very was we
were what when where which while who whom why will with would you your yours
"""
STOP_WORDS = frozenset(_STOP.split())


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean ROUGE-1 and ROUGE-L F1 (`rouge_score`, no stemming): ``{"rouge_1": …, "rouge_l": …}`` in [0, 1].

    An empty prediction or reference scores 0; with no pairs at all both are NaN.

    Raises:
        ValueError: different numbers of predictions and references.
    """
    pairs = list(zip(references, predictions, strict=True))
    scores = [_scorer().score(reference, prediction) for reference, prediction in pairs]
    return {
        "rouge_1": _mean([float(score["rouge1"].fmeasure) for score in scores]),
        "rouge_l": _mean([float(score["rougeL"].fmeasure) for score in scores]),
    }


def persona_f1(
    responses: Sequence[str],
    histories: Sequence[Sequence[str]],
    stop_words: Collection[str] = STOP_WORDS,
) -> float:
    """Mean Persona-F1 in [0, 1]: how much a response shares with what its user wrote before.

    Of the sets of words that are no stop words, R of the response and H of the history:
    p = |H ∩ R| / |R|, r = |H ∩ R| / |H|, F1 of both; 0 where nothing is shared. H is large, so values are
    small (0.007 to 0.023 in the paper). Always look at another user's responses as a control.

    Args:
        responses: one a sample.
        histories: for each of them the user's texts up to that sample.
        stop_words: lower case.

    Returns:
        NaN when there are no responses.

    Raises:
        ValueError: different numbers of responses and histories.
    """
    values = []
    known: dict[str, frozenset[str]] = {}
    for response, history in zip(responses, histories, strict=True):
        for text in history:
            if text not in known:
                known[text] = _words(text, stop_words)
        written = frozenset().union(*(known[text] for text in history))
        said = _words(response, stop_words)
        shared = len(written & said)
        values.append(2 * shared / (len(said) + len(written)) if shared else 0.0)
    return _mean(values)


def _words(text: str, stop_words: Collection[str]) -> frozenset[str]:
    words = (word.replace("’", "'") for word in _WORD.findall(text.lower()))
    return frozenset(word for word in words if word not in stop_words)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk: a second that importers need not pay

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=False)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
