"""What a judge looks at that it should not: the length of a response, and its place.

Judges are known to prefer long responses, and the first of two (docs/references.md: Zheng 2023).
Point-wise scores have no order; they can still follow length. What these numbers cannot tell: a
correlation of score and length is no proof of bias, since longer responses may be better. Compare
it with that of people's scores, or with the same judge on responses cut to one length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from milp_ray.evaluation.correlation import pearson, spearman


@dataclass(frozen=True, slots=True)
class LengthGroup:
    """Responses of like length: their number, lengths in characters, and mean score."""

    count: int
    shortest: int
    longest: int
    mean_score: float


@dataclass(frozen=True, slots=True)
class LengthBias:
    """Score against length.

    Attributes:
        pearson: r of score and characters; NaN where either never changes.
        spearman: rho of the same.
        quartiles: from the shortest quarter of responses to the longest; fewer groups for fewer
            than four responses.
    """

    pearson: float
    spearman: float
    quartiles: tuple[LengthGroup, ...]

    def __str__(self) -> str:
        rows = [
            f"  {group.shortest} to {group.longest} characters: {group.mean_score:.2f} ({group.count})"
            for group in self.quartiles
        ]
        head = f"score against length: Spearman {self.spearman:.2f}, Pearson {self.pearson:.2f}"
        return "\n".join([head, *rows])


def length_bias(responses: Sequence[str], scores: Sequence[float | None]) -> LengthBias:
    """How far scores follow the lengths of responses; those without a score are left out.

    Raises:
        ValueError: different numbers of responses and scores.
    """
    scored = [(len(text), score) for text, score in zip(responses, scores, strict=True) if score is not None]
    scored.sort()
    lengths, values = [float(length) for length, _ in scored], [score for _, score in scored]
    count, parts = len(scored), min(4, len(scored))
    groups = [scored[count * part // parts : count * (part + 1) // parts] for part in range(parts)]
    return LengthBias(
        pearson(lengths, values),
        spearman(lengths, values),
        tuple(
            LengthGroup(len(group), group[0][0], group[-1][0], sum(s for _, s in group) / len(group))
            for group in groups
        ),
    )


@dataclass(frozen=True, slots=True)
class PositionBias:
    """Verdicts on pairs that were shown in both orders.

    Attributes:
        pairs: with a verdict in both orders.
        flips: of these, pairs whose verdict changed with the order.
        first: verdicts, over both orders, for the response that was shown first.
        second: for the one shown second.
        unanswered: pairs that lack a verdict.
        verdicts: by pair 1, 0 or -1 for the response that the pair names first; a verdict that
            flipped is a tie; None without one.
    """

    pairs: int
    flips: int
    first: int
    second: int
    unanswered: int
    verdicts: tuple[int | None, ...]

    @property
    def flip_share(self) -> float:
        """Flips of all pairs, in [0, 1]; NaN without any."""
        return self.flips / self.pairs if self.pairs else float("nan")

    @property
    def first_share(self) -> float:
        """How often a preference is for what is shown first: 0.5 without bias; NaN without any."""
        chosen = self.first + self.second
        return self.first / chosen if chosen else float("nan")

    def __str__(self) -> str:
        if not self.pairs:
            return f"position: no pair with a verdict in both orders ({self.unanswered} without)"
        lost = f", {self.unanswered} pairs without a verdict" if self.unanswered else ""
        shown = f"; of {self.first + self.second} preferences {self.first} for what was shown first"
        flips = f"{self.flips} of {self.pairs} verdicts flip with the order ({100 * self.flip_share:.0f} %)"
        return f"position: {flips}{shown}{lost}"


def position_bias(forward: Sequence[float | None], backward: Sequence[float | None]) -> PositionBias:
    """What the order of two responses changes.

    Args:
        forward: a pair's verdict: 1 where what is shown first is better, 0, -1, or None.
        backward: the same pair's, turned round.

    Raises:
        ValueError: different numbers of verdicts.
    """
    both = [
        None if one is None or other is None else (int(one), int(other))
        for one, other in zip(forward, backward, strict=True)
    ]
    answered = [pair for pair in both if pair is not None]
    shown = [verdict for pair in answered for verdict in pair]
    return PositionBias(
        pairs=len(answered),
        flips=sum(one != -other for one, other in answered),
        first=shown.count(1),
        second=shown.count(-1),
        unanswered=len(both) - len(answered),
        verdicts=tuple(None if pair is None else pair[0] if pair[0] == -pair[1] else 0 for pair in both),
    )
