"""Table 1: what the users' data is that methods are compared on. No text is in it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from milp_ray.comparison.plan import ConditionPlan
from milp_ray.comparison.rendering import Table
from milp_ray.data.words import words_of


def statistics_table(plans: Sequence[ConditionPlan]) -> Table:
    """Table 1: the compared users' data, as it is used after the split and its limits."""
    rows, numbers = [], []
    for dataset, plan in {plan.condition.dataset: plan for plan in reversed(plans)}.items():
        users = list(plan.users.values())
        samples = [sample for user in users for sample in (*user.train, *user.validation, *user.test)]
        texts = [text for user in users for text in user.history]
        found = {
            "users": len(users),
            "samples": len(samples),
            "test_samples": sum(len(user.test) for user in users),
            "history_per_user": len(texts) / len(users),
            "words_per_text": _mean(texts),
            "words_per_response": _mean([sample.response for sample in samples]),
            "background_users": len(plan.background.splits),
        }
        numbers.append({"dataset": dataset} | found)
        rows.append(
            [
                dataset,
                *(f"{value:.1f}" if isinstance(value, float) else str(value) for value in found.values()),
            ]
        )
    header = [
        "data",
        "users",
        "samples",
        "of them test",
        "history texts a user",
        "words a text",
        "words a response",
        "background users",
    ]
    caption = "The compared users' data after the split, as the paper's table 1 has it of whole data sets."
    return Table("table_1_data", caption, header, rows, pd.DataFrame(numbers))


def _mean(texts: Sequence[str]) -> float:
    return sum(len(words_of(text)) for text in texts) / len(texts) if texts else 0.0
