"""The scores of finished cells, one row a user, and what they say of a method: means and gains.

A user counts once, however many samples or seeds: samples are averaged in the cell, seeds here. So
intervals are over users (:mod:`milp_ray.evaluation.intervals`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from milp_ray.comparison.cells import CellRecord
from milp_ray.evaluation.intervals import Interval, difference_interval, mean_interval

COLUMNS = ("dataset", "model", "seed", "method", "user", "samples", "metric", "value", "control")
TOO_FEW = "too few users to say"
LOWER_IS_BETTER = frozenset({"loss"})


def score_frame(records: Iterable[CellRecord]) -> pd.DataFrame:
    """One row a user and metric of every cell; a score that is not there is NaN."""
    rows = [
        (
            record.cell.condition.dataset,
            record.cell.condition.model,
            record.cell.condition.seed,
            record.cell.method,
            alias,
            result.samples,
            metric,
            value,
            result.control.get(metric),
        )
        for record in records
        for alias, result in record.users.items()
        for metric, value in result.scores.items()
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype({"value": float, "control": float})


@dataclass(frozen=True, slots=True)
class Gain:
    """How much better a method is than another, on the users that both have.

    Attributes:
        interval: of the differences, positive where the method is better.
        better: share of users for whom it is better.
    """

    interval: Interval
    better: float

    @property
    def word(self) -> str:
        """``better``, ``worse``; ``no clear difference`` where the interval holds 0; or too few."""
        if self.interval.few_users:
            return TOO_FEW
        if not self.interval.excludes_zero:
            return "no clear difference"
        return "better" if self.interval.value > 0 else "worse"


@dataclass(frozen=True)
class Scores:
    """Scores of one data set and base model.

    Args:
        frame: rows of :func:`score_frame` of that data set and model.
    """

    frame: pd.DataFrame

    @property
    def methods(self) -> list[str]:
        """In the order in which they first come."""
        return list(dict.fromkeys(self.frame.method))

    def of(self, method: str, metric: str, column: str = "value") -> dict[str, float]:
        """A score of every user, averaged over seeds; users without one are left out."""
        rows = self.frame[(self.frame.method == method) & (self.frame.metric == metric)]
        return {str(user): float(mean) for user, mean in rows.groupby("user")[column].mean().dropna().items()}

    def mean(self, method: str, metric: str, column: str = "value") -> Interval:
        """The mean over users with its interval."""
        return mean_interval(self.of(method, metric, column))

    def gain(self, method: str, over: str, metric: str) -> Gain:
        """What a method gains over another, user by user."""
        return _gain(self.of(method, metric), self.of(over, metric), metric)

    def personal_gain(self, method: str, metric: str) -> Gain:
        """What a user's own memory gains over another user's, with the same method."""
        return _gain(self.of(method, metric), self.of(method, metric, "control"), metric)


def _gain(ours: dict[str, float], theirs: dict[str, float], metric: str) -> Gain:
    if metric in LOWER_IS_BETTER:
        ours, theirs = ({user: -value for user, value in one.items()} for one in (ours, theirs))
    both = sorted(ours.keys() & theirs.keys())
    better = sum(ours[user] > theirs[user] for user in both) / len(both) if both else float("nan")
    # Only those with both: a method that failed for some is compared on the rest, and says so.
    interval = difference_interval({u: ours[u] for u in both}, {u: theirs[u] for u in both})
    return Gain(interval, better)
