"""The page in plain words: for whom a memory helps, by how much, at what cost, and where not.

Every sentence is computed from the finished cells; where an interval holds 0 it says that nothing
can be said.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from milp_ray.comparison.cells import CellRecord
from milp_ray.comparison.scores import TOO_FEW, Gain, Scores
from milp_ray.evaluation.intervals import FEW_USERS

OURS = ("milp", "milp+rag", "task_lora+milp")
_METRICS = (("loss", "nats per token of loss", 1.0), ("rouge_l", "points of ROUGE-L", 100.0))


def verdict(frame: pd.DataFrame, records: Sequence[CellRecord], unfinished: int = 0) -> str:
    """The page, as Markdown.

    Args:
        frame: of :func:`milp_ray.comparison.scores.score_frame`.
        records: the finished cells.
        unfinished: how many cells are not finished.
    """
    lines = ["# Verdict", ""]
    if unfinished:
        lines += [f"{unfinished} cells are not finished: what follows is of the others.", ""]
    for (dataset, model), part in frame.groupby(["dataset", "model"], sort=False):
        lines += [f"## {dataset}, {model}", ""]
        mine = [r for r in records if (r.cell.condition.dataset, r.cell.condition.model) == (dataset, model)]
        lines += [*(f"- {sentence}" for sentence in _sentences(Scores(part), mine)), ""]
    lines += [
        "Intervals are 95 % bootstrap intervals over users. A difference whose interval holds 0 is called no "
        f"clear difference. With fewer than {FEW_USERS} users intervals are too narrow to say anything.",
        "",
    ]
    return "\n".join(lines)


def _sentences(scores: Scores, records: Sequence[CellRecord]) -> list[str]:
    found = []
    ours = [name for name in OURS if name in scores.methods]
    if ours and "none" in scores.methods:
        found += [_against(scores, ours[0], "none", "the bare model", *metric) for metric in _METRICS]
    if ours:
        found += [_personal(scores, ours[0], *metric) for metric in _METRICS]
    found += [_best(scores, *metric) for metric in _METRICS]
    for name in ours[:1]:
        found += [_others(scores, name, *metric) for metric in _METRICS]
    found += _costs(records)
    failed = {r.cell.method: len(r.failed) for r in records if r.failed}
    if failed:
        listed = ", ".join(f"{name} {count}" for name, count in failed.items())
        found.append(f"Users without a result, who are in no mean: {listed}.")
    return [sentence for sentence in found if sentence]


def _against(
    scores: Scores, name: str, other: str, called: str, metric: str, unit: str, factor: float
) -> str:
    gain = scores.gain(name, other, metric)
    if not gain.interval.users:
        return ""
    return (
        f"`{name}` against {called}: {_gain_words(gain, unit, factor)}; better for "
        f"{100 * gain.better:.0f} % of {gain.interval.users} users."
    )


def _personal(scores: Scores, name: str, metric: str, unit: str, factor: float) -> str:
    """Whether it is the user's own memory that helps, or any memory of the data set."""
    gain = scores.personal_gain(name, metric)
    if not gain.interval.users:
        return ""
    return (
        f"A user's own `{name}` against another user's: {_gain_words(gain, unit, factor)}; better for "
        f"{100 * gain.better:.0f} %. What another's memory gives as well is the data set's manner, and not "
        "personal."
    )


def _best(scores: Scores, metric: str, unit: str, factor: float) -> str:
    means = {name: scores.mean(name, metric) for name in scores.methods}
    known = {name: mean.value for name, mean in means.items() if mean.users}
    if not known:
        return ""
    if any(mean.users and mean.few_users for mean in means.values()):
        return ""
    ranked = sorted(known, key=known.__getitem__, reverse=metric != "loss")
    best = ranked[0]
    digits = 3 if factor == 1 else 2
    beside = [name for name in ranked[1:] if not scores.gain(best, name, metric).interval.excludes_zero]
    tied = f"; not clearly behind it: {', '.join(f'`{name}`' for name in beside)}" if beside else ""
    return f"Best in {unit}: `{best}` ({known[best] * factor:.{digits}f}){tied}."


def _others(scores: Scores, name: str, metric: str, unit: str, factor: float) -> str:
    """Where ours does not win."""
    behind: list[str] = []
    level: list[str] = []
    ahead: list[str] = []
    for other in scores.methods:
        word = TOO_FEW if other == name else scores.gain(name, other, metric).word
        if word == TOO_FEW:
            continue
        {"worse": behind, "better": ahead}.get(word, level).append(f"`{other}`")
    parts = [
        f"{text} {', '.join(names)}"
        for text, names in (("beats", ahead), ("loses to", behind), ("is not clearly apart from", level))
        if names
    ]
    return f"In {unit}, `{name}` {'; '.join(parts)}." if parts else ""


def _gain_words(gain: Gain, unit: str, factor: float) -> str:
    interval, digits = gain.interval, 3 if factor == 1 else 2
    shown = f"{interval.value * factor:+.{digits}f} {unit}"
    if interval.low == interval.low:
        low, high = interval.low * factor, interval.high * factor
        shown += f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"{gain.word} ({shown}, positive is better)"


def _costs(records: Sequence[CellRecord]) -> list[str]:
    found = []
    for record in records:
        if record.cell.method not in (*OURS, "rag", "tplp", "task_lora") or not record.users:
            continue
        users, cost = len(record.users), record.cost
        prompt = sum(user.prompt_tokens for user in record.users.values()) / users
        trials = f" in {cost.trials} trials" if cost.trials else ""
        found.append(
            f"Cost of `{record.cell.method}` (seed {record.cell.condition.seed}) a user: "
            f"{cost.train_seconds / users:.1f} s of training{trials}, "
            f"{cost.adapter_bytes / 1024:,.0f} KiB kept, {prompt:.0f} tokens of prompt."
        )
    return found
