"""Scores of responses that should be a label: LaMP 1 to 3, PersonaMem.

LaMP (docs/references.md: Salemi 2024) reports accuracy and macro-F1 for its first two tasks, MAE
and RMSE for the third. Its evaluator compares whole responses, and gives a rating that it cannot
read the end of the scale that is farther from the gold one (the upper end for a 3). That is done
here, too, in two ways:

- ``whole``: the response must be the label and nothing else, as in LaMP's evaluator;
- ``held``: the label may stand anywhere in the response, if it is the only one there.

A response without a label, or with several, is counted, and wrong. Other than LaMP's evaluator,
which takes any number for a rating, 7 and NaN too, this one takes what is off the scale for no
label.

What they cannot tell: accuracy says nothing of responses that name no label; look at
``unlabelled``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from milp_ray.data.labels import LABELS as LABELS

Rule = Literal["held", "whole"]
_AROUND = " \t\r\n.,:;!?\"'`*()[]"


@dataclass(frozen=True, slots=True)
class LabelScores:
    """Scores of responses against gold labels; NaN without any.

    Attributes:
        accuracy: share of responses with the gold label, in [0, 1].
        macro_f1: mean F1 over all labels of the data set, in [0, 1]; a label that neither gold nor
            responses have counts 0, as in LaMP's evaluator.
        mae: mean absolute error, in steps of the labels' own numbers; NaN where labels are no
            numbers.
        rmse: root of the mean squared error, likewise.
        unlabelled: responses without a label, or with several.
        count: responses.
    """

    accuracy: float
    macro_f1: float
    mae: float
    rmse: float
    unlabelled: int
    count: int


def label_scores(
    responses: Sequence[str], gold: Sequence[str], labels: Sequence[str], rule: Rule = "held"
) -> LabelScores:
    """Accuracy, macro-F1, MAE and RMSE of responses.

    Args:
        responses: what a model said.
        gold: the right label of each.
        labels: all labels of the data set, as :data:`LABELS` has them.
        rule: see the module.

    Raises:
        ValueError: different numbers of responses and gold labels, or a gold label that is none.
    """
    if len(responses) != len(gold):
        raise ValueError(f"{len(responses)} responses beside {len(gold)} gold labels")
    right = [label.strip() for label in gold]
    if strange := [index for index, label in enumerate(right) if label not in labels]:
        raise ValueError(f"gold label {strange[0]} is none of the data set's {len(labels)}")
    found = [find_label(response, labels, rule) for response in responses]
    mae, rmse = _errors(found, right, labels)
    return LabelScores(
        accuracy=_mean([float(one == other) for one, other in zip(found, right, strict=True)]),
        macro_f1=_mean([_f1(found, right, label) for label in labels]) if found else float("nan"),
        mae=mae,
        rmse=rmse,
        unlabelled=found.count(None),
        count=len(found),
    )


def find_label(response: str, labels: Sequence[str], rule: Rule = "held") -> str | None:
    """The label that a response names; None where it names none, or several.

    Example:
        >>> find_label("The answer is (c).", LABELS["personamem"])
        '(c)'
        >>> find_label("a dark comedy", LABELS["lamp_2"])
        'dark comedy'
        >>> find_label("4.5", LABELS["lamp_3"]) is None
        True
    """
    if rule == "whole":
        return response.strip() if response.strip() in labels else None
    bare = response.strip(_AROUND).casefold()
    for label in labels:
        if bare == label.strip(_AROUND).casefold():
            return label
    # One at each place, a longer label before one that it contains.
    named = {found.lastindex for found in _pattern(tuple(labels)).finditer(response)}
    if len(named) != 1:
        return None
    return _longest_first(labels)[(named.pop() or 1) - 1]


def _longest_first(labels: Sequence[str]) -> list[str]:
    return sorted(labels, key=len, reverse=True)


@lru_cache(maxsize=16)
def _pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"({_bounded(label)})" for label in _longest_first(labels)), re.IGNORECASE)


def _bounded(label: str) -> str:
    """A label that is no part of a longer word or number: of "4/5" the 4, of "3-4" nothing.

    One in brackets may lack the first where a response begins with it: "c) because".
    """
    if label.isdigit():
        return rf"(?<![\w.,/-]){label}(?:\.0+)?(?!\w|[.,–-]\d)"
    before = r"(?<!\w)" if label[0].isalnum() else ""
    after = r"(?!\w)" if label[-1].isalnum() else ""
    core = label.strip(_AROUND)
    begun = "" if core == label else rf"|\A\W*{re.escape(core)}[).:\]]"
    return before + re.escape(label) + after + begun


def _f1(found: Sequence[str | None], right: Sequence[str], label: str) -> float:
    hits = sum(one == other == label for one, other in zip(found, right, strict=True))
    total = found.count(label) + right.count(label)
    return 2 * hits / total if total else 0.0


def _errors(found: Sequence[str | None], right: Sequence[str], labels: Sequence[str]) -> tuple[float, float]:
    """MAE and RMSE; NaN where a label is no number."""
    try:
        scale = {label: float(label) for label in labels}
    except ValueError:
        return float("nan"), float("nan")
    low, high = min(scale.values()), max(scale.values())
    errors = []
    for one, other in zip(found, right, strict=True):
        gold = scale[other]
        errors.append(abs(scale[one] - gold) if one is not None else max(gold - low, high - gold))
    return _mean(errors), math.sqrt(_mean([error**2 for error in errors])) if errors else float("nan")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else float("nan")
