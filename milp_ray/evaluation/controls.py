"""The other-user control: what a score is when the responses are another person's.

A score of personalization means something beside its control alone. Responses of user A scored
against user B's history or references tell how much of the score anybody's text gets: topic, style
of the data set, and how long a history is. What remains, own minus control, is personal.

What it cannot tell: users of one data set that resemble each other have a high control although
their memories work. And a score that grows with the length of what it is compared with (Persona-F1)
differs between A and B for that reason, too: look at the mean over users, not at one pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Reference = TypeVar("Reference")


@dataclass(frozen=True, slots=True)
class Controlled:
    """A user's score beside its control.

    Attributes:
        own: the user's responses against the user's own references.
        control: the same responses against another user's.
        other: whose they are, an alias.
    """

    own: float
    control: float
    other: str

    @property
    def personal(self) -> float:
        """What the control does not explain: own minus control."""
        return self.own - self.control


def derangement(aliases: Iterable[str], seed: int = 0) -> dict[str, str]:
    """For every user another one, and every user for exactly one.

    It follows from the set of aliases and the seed: the order in which they are given does not
    matter, and a user that joins or leaves changes the pairs of its neighbours alone. One user
    alone has no other: the result is empty.

    Example:
        >>> derangement(["u-a", "u-b", "u-c"]) == derangement(["u-c", "u-a", "u-b"])
        True
        >>> any(user == other for user, other in derangement(["u-a", "u-b", "u-c"]).items())
        False
        >>> derangement(["u-a"])
        {}
    """
    ring = sorted(set(aliases), key=lambda alias: hashlib.sha256(f"control {seed} {alias}".encode()).digest())
    return dict(zip(ring, ring[1:] + ring[:1], strict=True)) if len(ring) > 1 else {}


def paired_with(others: Sequence[Reference], count: int) -> list[Reference]:
    """``count`` references of another user, who may have fewer or more: from the first on, again.

    Raises:
        ValueError: there are none to take.
    """
    if not others and count:
        raise ValueError("the other user has no references")
    return [others[index % len(others)] for index in range(count)]


def controlled(
    metric: Callable[[Sequence[str], Sequence[Reference]], float],
    responses: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[Reference]],
    seed: int = 0,
) -> dict[str, Controlled]:
    """Every user's score by a metric, beside its control.

    Args:
        metric: of responses and as many references:
            :func:`~milp_ray.evaluation.metrics.persona_f1` (histories),
            :func:`~milp_ray.evaluation.metrics.chrf` (gold responses), …
        responses: by alias. With the gold responses in their place the result is the control of the
            data itself.
        references: by alias, one for each response. Users without any are left out.
        seed: of :func:`derangement`.

    Returns:
        By alias; empty for fewer than two users.

    Raises:
        ValueError: the metric's, for different numbers of responses and references.
    """
    users = [alias for alias, given in responses.items() if given and references.get(alias)]
    return {
        alias: Controlled(
            own=metric(responses[alias], references[alias]),
            control=metric(responses[alias], paired_with(references[other], len(responses[alias]))),
            other=other,
        )
        for alias, other in sorted(derangement(users, seed).items())
    }
