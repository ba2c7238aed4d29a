"""Win rate: how often one method's response is scored above another's.

Every response is scored on its own, from 1 to 10 (:mod:`milp_ray.evaluation.judges`); nobody sees
two at once, so there is no order that could matter. The paper compares with the prompt baseline
(docs/references.md: Zhang 2024, who released no code of it).

What it cannot tell: by how much a response is better, and whether the judge is right. A judge that
gives nearly everything an 8 makes ties, and a win rate near 50 % then says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIN, TIE, LOSE = 1, 0, -1


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often a method won, tied and lost.

    Example:
        >>> found = win_rate([8, 7, 9, 6], [7, 7, 8, 8])
        >>> found.value, str(found)
        (0.625, '62.5 % (2 won, 1 tied, 1 lost)')

    Attributes:
        wins: responses scored above the other method's.
        ties: scored alike; each counts half.
        losses: scored below.
        unscored: pairs that lack a score of either side. They are left out, and not half.
    """

    wins: int
    ties: int
    losses: int
    unscored: int = 0

    @property
    def value(self) -> float:
        """(wins + ties / 2) / pairs with both scores, in [0, 1]; NaN without any."""
        pairs = self.wins + self.ties + self.losses
        return (self.wins + 0.5 * self.ties) / pairs if pairs else float("nan")

    def __str__(self) -> str:
        counts = f"{self.wins} won, {self.ties} tied, {self.losses} lost"
        lost = f", {self.unscored} without a score" if self.unscored else ""
        rate = f"{100 * self.value:.1f} %" if self.wins + self.ties + self.losses else "none"
        return f"{rate} ({counts}{lost})"


def verdicts(scores: Sequence[float | None], baseline: Sequence[float | None]) -> list[int | None]:
    """1 (win), 0 (tie) or -1 (lose) for each pair of scores; None where one is missing.

    Args:
        scores: of the method's responses.
        baseline: of the other method's responses to the same samples, in the same order.

    Raises:
        ValueError: different numbers of scores.
    """
    pairs = zip(scores, baseline, strict=True)
    return [None if a is None or b is None else WIN if a > b else LOSE if a < b else TIE for a, b in pairs]


def win_rate(scores: Sequence[float | None], baseline: Sequence[float | None]) -> WinRate:
    """The win rate of a method over another; arguments and errors are those of :func:`verdicts`."""
    return counted(verdicts(scores, baseline))


def counted(found: Sequence[int | None]) -> WinRate:
    """The win rate of verdicts."""
    return WinRate(found.count(WIN), found.count(TIE), found.count(LOSE), found.count(None))


def shares(found: Sequence[int | None]) -> list[float]:
    """A win as 1, a tie as a half, a defeat as 0: their mean is the win rate; None is left out.

    One user's mean of these is what :mod:`milp_ray.evaluation.intervals` resamples.
    """
    return [(one + 1) / 2 for one in found if one is not None]
