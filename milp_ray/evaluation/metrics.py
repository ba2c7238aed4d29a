"""Text metrics of responses: ROUGE and chrF against references, Persona-F1 against the history.

These are shares in [0, 1]; the paper's tables multiply them by 100. :mod:`milp_ray.data.words` says
what a word is, in any script; on English text, ROUGE is rouge_score's own. Does *not* cover win
rates, which need a judge.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

from milp_ray.data.words import NEWEST, text_rules

#: The scores of the final test; the fields of :class:`milp_ray.evaluation.compare.TestScores`.
SCORES = ("loss", "rouge_1", "rouge_l", "chrf", "persona_f1")

_CHRF_ORDER = 6  # longest n-gram of characters
_CHRF_BETA = 2.0  # how much more recall counts than precision

# Frozen: a change here changes every Persona-F1 ever reported.
_STOP = """
a about after again all also am an and any are as at be because been before being but by can could did do does
doing don't down for from further had has have having he her here hers him his how i i'm if in into is it it's
its just me more most my no nor not of off on once only or other our out over own s same she should so some
such t than that the their them then there these they this those through to too under until up very was we
were what when where which while who whom why will with would you your yours
"""
STOP_WORDS = frozenset(_STOP.split())


def rouge(predictions: Sequence[str], references: Sequence[str], rules: int = NEWEST) -> dict[str, float]:
    """Mean ROUGE-1 and ROUGE-L F1 (`rouge_score`, no stemming) in [0, 1]: ``rouge_1``, ``rouge_l``.

    The metrics are those of docs/references.md: Lin 2004. An empty prediction or reference scores
    0; without any pair both are NaN.

    Args:
        predictions: one for each reference.
        references: the responses of the data.
        rules: of words, see :func:`milp_ray.data.words.text_rules`.

    Raises:
        ValueError: different numbers of predictions and references.
    """
    pairs = list(zip(references, predictions, strict=True))
    scores = [_scorer(rules).score(reference, prediction) for reference, prediction in pairs]
    return {
        "rouge_1": _mean([float(score["rouge1"].fmeasure) for score in scores]),
        "rouge_l": _mean([float(score["rougeL"].fmeasure) for score in scores]),
    }


def chrf(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Mean chrF2 of texts in NFC form: sacrebleu's `sentence_chrf`, as a share of 1.

    An F-score of character n-grams, n from 1 to 6, without blanks, with case: parts of a word
    count, and no notion of a word is needed. NaN without any pair. The metric is that of
    docs/references.md: Popović 2015.

    Raises:
        ValueError: different numbers of predictions and references.
    """
    return _mean([_sentence_chrf(*pair) for pair in zip(predictions, references, strict=True)])


def persona_f1(
    responses: Sequence[str],
    histories: Sequence[Sequence[str]],
    stop_words: Collection[str] = STOP_WORDS,
    rules: int = NEWEST,
) -> float:
    """Mean Persona-F1 in [0, 1]: how much a response shares with what its user wrote before.

    Of the sets of words that are no stop words, R of the response and H of the history:
    p = |H ∩ R| / |R|, r = |H ∩ R| / |H|, F1 of both; 0 where nothing is shared. H is large, so
    values are small (0.007 to 0.023 in the paper, docs/references.md: Zhang 2024). Always look at
    another user's responses as a control.

    Args:
        responses: one a sample.
        histories: for each of them the user's texts up to that sample.
        stop_words: lower case.
        rules: of words, see :func:`milp_ray.data.words.text_rules`.

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
                known[text] = _words(text, stop_words, rules)
        written = frozenset().union(*(known[text] for text in history))
        said = _words(response, stop_words, rules)
        shared = len(written & said)
        values.append(2 * shared / (len(said) + len(written)) if shared else 0.0)
    return _mean(values)


#: Objectives that a trial measures on the responses that it generates, in any unit: each from
#: these responses, the references, and the rules of words. Where a study has one of them, a trial
#: measures them all. The final job's test has its own, ``SCORES``.
RESPONSE_METRICS: Mapping[str, Callable[[Sequence[str], Sequence[str], int], float]] = {
    "rouge_l": lambda responses, references, rules: rouge(responses, references, rules)["rouge_l"],
    "chrf": lambda responses, references, rules: chrf(responses, references),
}


def _words(text: str, stop_words: Collection[str], rules: int = NEWEST) -> frozenset[str]:
    return frozenset(word for word in text_rules(rules).persona(text) if word not in stop_words)


@cache
def _scorer(rules: int) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # which imports nltk, for a second

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=False, tokenizer=_Tokenizer(rules))


class _Tokenizer:
    """Words for rouge_score."""

    def __init__(self, rules: int) -> None:
        self._words = text_rules(rules).rouge

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return list(self._words(text))


def _sentence_chrf(prediction: str, reference: str) -> float:
    said, given = ("".join(unicodedata.normalize("NFC", text).split()) for text in (prediction, reference))
    # Orders that one of the texts is too short for do not count.
    orders = range(1, min(_CHRF_ORDER, len(said), len(given)) + 1)
    if not orders:
        return 0.0
    precision = recall = 0.0
    for order in orders:
        predicted, expected = _ngrams(said, order), _ngrams(given, order)
        shared = (predicted & expected).total()
        precision += shared / predicted.total() / len(orders)
        recall += shared / expected.total() / len(orders)
    weight = _CHRF_BETA**2
    total = weight * precision + recall
    return (1 + weight) * precision * recall / total if total else 0.0


def _ngrams(text: str, length: int) -> Counter[str]:
    return Counter(text[at : at + length] for at in range(len(text) - length + 1))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
