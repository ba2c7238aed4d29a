"""Statistics of users' data, as in Table 1 of the paper, and which regime they allow.

The paper is MiLP (docs/references.md: Zhang 2024). Words are those of :mod:`milp_ray.data.words`.
Who is left out by a split, and why, is :mod:`milp_ray.data.splits`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from milp_ray.config.models import DataSettings
from milp_ray.data.records import UserRecord
from milp_ray.data.words import words_of

FEWEST_SAMPLES = 3  # a per-user split has three parts, none of them empty

Regime = Literal["per_user", "by_user"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Users, as read, in numbers. Means over what they count; 0 where there is nothing to count.

    Attributes:
        users, samples: how many.
        samples_per_user: mean.
        fewest_samples, most_samples: of a user.
        history: mean number of history texts of a user.
        words_per_text: mean length of a history text, in words.
        words_per_query: of a query, without its context.
        words_per_response: of a response.
        labelled: samples with a label.
        per_user: users with as many samples as a per-user split needs.
    """

    users: int
    samples: int
    samples_per_user: float
    fewest_samples: int
    most_samples: int
    history: float
    words_per_text: float
    words_per_query: float
    words_per_response: float
    labelled: int
    per_user: int


def statistics_of(users: Sequence[UserRecord], settings: DataSettings) -> Statistics:
    """The statistics of users as a reader found them, before any split.

    Args:
        users: at least one.
        settings: ``min_samples`` says what a per-user split needs.
    """
    samples = [sample for user in users for sample in user.samples]
    texts = [text for user in users for text in user.history]
    counts = [len(user.samples) for user in users]
    needed = samples_needed(settings)
    return Statistics(
        users=len(users),
        samples=len(samples),
        samples_per_user=len(samples) / len(users),
        fewest_samples=min(counts),
        most_samples=max(counts),
        history=len(texts) / len(users),
        words_per_text=_mean(texts, _words),
        words_per_query=_mean([sample.query for sample in samples], _words),
        words_per_response=_mean([sample.response for sample in samples], _words),
        labelled=sum(sample.label is not None for sample in samples),
        per_user=sum(count >= needed for count in counts),
    )


def samples_needed(settings: DataSettings) -> int:
    """How many samples of one user a per-user split needs, whatever the study file asks."""
    return max(FEWEST_SAMPLES, settings.min_samples)


def regime_for(users: Sequence[UserRecord], settings: DataSettings) -> Regime:
    """The regime that data allows: by user where most users have too few samples for a split."""
    needed = samples_needed(settings)
    enough = sum(len(user.samples) >= needed for user in users)
    return "per_user" if 2 * enough >= len(users) else "by_user"


def _mean(texts: Sequence[str], measure: Callable[[str], int]) -> float:
    return sum(map(measure, texts)) / len(texts) if texts else 0.0


def _words(text: str) -> int:
    return len(words_of(text))
