"""Table 3: how often a judge scores a method's responses above another's.

What a judge is asked, and what that takes, is :mod:`milp_ray.evaluation.judges`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from milp_ray.comparison.answers import AnswerStore
from milp_ray.comparison.plan import ConditionPlan, MethodPlan
from milp_ray.comparison.rendering import Table
from milp_ray.data.records import UserSplit
from milp_ray.evaluation.bias import length_bias
from milp_ray.evaluation.intervals import mean_interval
from milp_ray.evaluation.judges import Judge, ScoreRequest, exchange_of
from milp_ray.evaluation.judges.cache import AnswerCache
from milp_ray.evaluation.judges.scoring import Estimate, ask, estimate
from milp_ray.evaluation.win_rate import shares, verdicts, win_rate

Answered = Callable[[ConditionPlan, MethodPlan], AnswerStore]


class Judging:
    """A judge's scores of finished cells' responses.

    Args:
        judge: whom to ask.
        cache: of its answers.
        over: the method that others are compared with.
        answered: finds the answers of a cell.
    """

    def __init__(self, judge: Judge, cache: AnswerCache, over: str, answered: Answered) -> None:
        self._judge, self._cache, self._over, self._answered = judge, cache, over, answered

    def estimate(self, plans: Sequence[ConditionPlan]) -> Estimate:
        """What asking for all finished cells takes."""
        requests = [
            request
            for plan in plans
            for method in plan.methods
            for some in self._requests(plan, method).values()
            for request in some
        ]
        return estimate(self._judge, requests, self._cache)

    def table(self, plans: Sequence[ConditionPlan]) -> Table:
        """Table 3: win rates over one method, with intervals over users, and what scores depend on.

        Raises:
            JudgeError: the judge answers nothing. What it answered before is kept.
        """
        header = [
            "data",
            "model",
            "method",
            "win rate",
            "won, tied, lost",
            "without a score",
            "score ~ length",
        ]
        rows, numbers = [], []
        for plan in plans:
            scores = {method.name: self._scores(plan, method) for method in plan.methods}
            against = scores.get(self._over, {})
            for name, own in scores.items():
                if own and against and name != self._over:
                    row, values = self._row(plan, name, own, against)
                    rows.append(row)
                    numbers.append(values)
        caption = (
            f"Win rate over `{self._over}`, judged by {self._judge.name}: every response is scored on its "
            "own; a tie counts half; mean over users [95 % bootstrap interval]. The last column "
            "is the rank correlation of a response's score with its length: far from 0, the judge rewards "
            "length."
        )
        return Table("table_3_win_rate", caption, header, rows, pd.DataFrame(numbers))

    def _row(
        self,
        plan: ConditionPlan,
        name: str,
        own: Mapping[str, list[tuple[str, float | None]]],
        against: Mapping[str, list[tuple[str, float | None]]],
    ) -> tuple[list[str], dict[str, object]]:
        both = sorted(own.keys() & against.keys())
        pairs = {
            alias: verdicts([score for _, score in own[alias]], [score for _, score in against[alias]])
            for alias in both
        }
        counts = win_rate(
            [score for alias in both for _, score in own[alias]],
            [score for alias in both for _, score in against[alias]],
        )
        by_user = {alias: _share(found) for alias, found in pairs.items() if shares(found)}
        mean = mean_interval(by_user)
        responses = [pair for alias in both for pair in own[alias] if pair[1] is not None]
        length = length_bias([text for text, _ in responses], [score for _, score in responses])
        ends = f" [{100 * mean.low:.1f}, {100 * mean.high:.1f}]" if mean.low == mean.low else ""
        row = [
            plan.condition.dataset,
            plan.condition.model,
            name,
            f"{100 * mean.value:.1f} %{ends}",
            f"{counts.wins}, {counts.ties}, {counts.losses}",
            str(counts.unscored),
            f"{length.spearman:+.2f}",
        ]
        values: dict[str, object] = {
            "dataset": plan.condition.dataset,
            "model": plan.condition.model,
            "seed": plan.condition.seed,
            "method": name,
            "over": self._over,
            "judge": self._judge.name,
            "win_rate": mean.value,
            "low": mean.low,
            "high": mean.high,
            "users": mean.users,
            "wins": counts.wins,
            "ties": counts.ties,
            "losses": counts.losses,
            "unscored": counts.unscored,
            "length_spearman": length.spearman,
        }
        return row, values

    def _scores(self, plan: ConditionPlan, method: MethodPlan) -> dict[str, list[tuple[str, float | None]]]:
        """Of every user the responses with their scores."""
        requests = self._requests(plan, method)
        flat = [request for some in requests.values() for request in some]
        values = iter(ask(self._judge, flat, self._cache).values) if flat else iter(())
        return {alias: [(one.response, next(values)) for one in some] for alias, some in requests.items()}

    def _requests(self, plan: ConditionPlan, method: MethodPlan) -> dict[str, list[ScoreRequest]]:
        store = self._answered(plan, method)
        found = {}
        for alias, user in plan.users.items():
            answer = store.find(alias)
            if answer is not None and not answer.reason:
                found[alias] = _asked(user, answer.responses)
        return found


def _asked(user: UserSplit, responses: Sequence[str]) -> list[ScoreRequest]:
    return [
        ScoreRequest(exchange_of(user, sample), response)
        for sample, response in zip(user.test, responses, strict=True)
    ]


def _share(found: Sequence[int | None]) -> float:
    values = shares(found)
    return sum(values) / len(values)
