"""Case pages, as figure 4 of the paper (docs/references.md: Zhang 2024): what each method answered.

They show texts of users, so nobody gets them unasked (``cases`` of the comparison file), and their
files are readable by their owner only. Which users are shown is no choice of a person's: they are
spread evenly from the one who gains most by the memory to the one who loses most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from milp_ray.comparison.cells import CellRecord
from milp_ray.comparison.plan import ConditionPlan
from milp_ray.comparison.verdict import OURS
from milp_ray.data.records import Sample, UserSplit
from milp_ray.tune.comparison.worker import Answer

_EARLIER = 3  # of the newest history texts before a sample
_FENCE = re.compile(r"`{3,}")

Answers = Mapping[str, Mapping[str, Answer]]  # method -> alias -> answer


def case_page(plan: ConditionPlan, records: Sequence[CellRecord], answers: Answers, count: int) -> str:
    """A condition's page, as Markdown.

    Args:
        plan: of the condition.
        records: its finished cells.
        answers: of these cells.
        count: users to show.
    """
    name = next((one for one in OURS if one in answers), "")
    gains = _gains(records, name)
    shown = _spread([alias for alias in gains or plan.users if _is_answered(alias, answers)], count)
    lines = [f"# Cases of {plan.condition.name}", ""]
    lines += [_whom(name, bool(gains), len(shown)), ""]
    for alias in shown:
        user = plan.users[alias]
        head = f": {gains[alias]:+.3f} nats by `{name}`" if gains else ""
        lines += [f"## {alias}{head}", ""]
        lines += _case(user, user.test[0], {method: found[alias] for method, found in answers.items()})
    return "\n".join(lines)


def _gains(records: Sequence[CellRecord], name: str) -> dict[str, float]:
    """What a method gains over the bare model in nats, by alias, the largest first."""
    losses = {
        record.cell.method: {alias: result.scores.get("loss") for alias, result in record.users.items()}
        for record in records
    }
    bare, own = losses.get("none", {}), losses.get(name, {})
    gains = {
        alias: before - after
        for alias, after in own.items()
        if after is not None and (before := bare.get(alias)) is not None
    }
    return dict(sorted(gains.items(), key=lambda item: (-item[1], item[0])))


def _is_answered(alias: str, answers: Answers) -> bool:
    return all(alias in found and found[alias].responses for found in answers.values())


def _spread(aliases: Sequence[str], count: int) -> list[str]:
    if count >= len(aliases):
        return list(aliases)
    if count == 1:
        return [aliases[len(aliases) // 2]]
    return [aliases[round(place * (len(aliases) - 1) / (count - 1))] for place in range(count)]


def _whom(name: str, by_gain: bool, count: int) -> str:
    order = f"from the one who gains most by `{name}` to the one who loses most" if by_gain else "by alias"
    return (
        f"{count} users, spread evenly {order}; of each the oldest test sample. "
        "This page shows users' texts: keep it as you keep their data."
    )


def _case(user: UserSplit, sample: Sample, answers: Mapping[str, Answer]) -> list[str]:
    before = user.history[: sample.n_hist] if sample.n_hist is not None else user.history
    parts = [(f"written before ({len(before)} texts)", "\n".join(before[-_EARLIER:]))]
    parts += [
        ("context", sample.context or ""),
        ("query", sample.query),
        ("the user's own response", sample.response),
    ]
    parts += [(f"`{method}`", answer.responses[0]) for method, answer in answers.items()]
    return [line for title, text in parts if text for line in _block(title, text)]


def _block(title: str, text: str) -> list[str]:
    """A text as it is: within a fence that is longer than any of its own."""
    fence = "`" * max(3, 1 + max((len(found) for found in _FENCE.findall(text)), default=0))
    return [f"{title}:", "", f"{fence}text", text, fence, ""]
