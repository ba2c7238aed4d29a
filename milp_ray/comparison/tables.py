"""The tables of a comparison, numbered as the paper's (docs/references.md: Zhang 2024).

Each is a pure function of the finished cells' scores and costs. Table 1 and the judge's table 3
need the users' texts or responses; they are made where these are (:mod:`milp_ray.comparison.run`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from milp_ray.comparison.cells import CellRecord
from milp_ray.comparison.rendering import Table
from milp_ray.comparison.scores import Scores
from milp_ray.config.comparison import Comparison
from milp_ray.evaluation.intervals import Interval

#: Scores in the tables: name, heading, factor.
SHOWN = (
    ("loss", "loss", 1.0),
    ("rouge_1", "ROUGE-1", 100.0),
    ("rouge_l", "ROUGE-L", 100.0),
    ("chrf", "chrF", 100.0),
    ("persona_f1", "P-F1", 100.0),
)
_CONTROL = "in brackets the same samples answered with another user's memory"


def main_table(frame: pd.DataFrame) -> Table:
    """Table 2: every method's scores with 95 % intervals over users, and their controls."""
    header = ["data", "model", "method", "users", *(heading for _, heading, _ in SHOWN)]
    rows, numbers = [], []
    for (dataset, model), part in frame.groupby(["dataset", "model"], sort=False):
        scores = Scores(part)
        for method in scores.methods:
            cells, count = [], 0
            for metric, _, factor in SHOWN:
                own, control = scores.mean(method, metric), scores.mean(method, metric, "control")
                count = max(count, own.users)
                cells.append(_with_interval(own, factor) + _bracketed(control, factor))
                numbers.append(
                    {"dataset": dataset, "model": model, "method": method, "metric": metric}
                    | _plain(own)
                    | {"control": control.value}
                )
            rows.append([str(dataset), str(model), method, str(count), *cells])
    caption = (
        "Scores on the users' test samples: mean over users [95 % bootstrap interval]; "
        f"{_CONTROL}. Loss in nats per token (lower is better), all others x 100."
    )
    return Table("table_2_scores", caption, header, rows, pd.DataFrame(numbers))


def gains_table(frame: pd.DataFrame, over: str, metrics: Sequence[str] = ("loss", "rouge_l")) -> Table:
    """Differences to one method, user by user, with 95 % intervals."""
    shown = [one for one in SHOWN if one[0] in metrics]
    header = ["data", "model", "method", *(f"{heading}, users better" for _, heading, _ in shown)]
    rows, numbers = [], []
    for (dataset, model), part in frame.groupby(["dataset", "model"], sort=False):
        scores = Scores(part)
        for method in scores.methods:
            if method == over:
                continue
            cells = []
            for metric, _, factor in shown:
                gain = scores.gain(method, over, metric)
                mark = "*" if gain.interval.excludes_zero else ""
                share = "" if gain.better != gain.better else f", {100 * gain.better:.0f} %"
                cells.append(_ends(gain.interval, factor) + mark + share)
                numbers.append(
                    {"dataset": dataset, "model": model, "method": method, "over": over, "metric": metric}
                    | _plain(gain.interval)
                    | {"better": gain.better}
                )
            rows.append([str(dataset), str(model), method, *cells])
    caption = (
        f"What each method gains over `{over}` (positive is better, also for the loss): mean difference per "
        "user [95 % bootstrap interval over users], and the share of users who gain. "
        "* the interval leaves 0 out."
    )
    return Table(f"gains_over_{over}", caption, header, rows, pd.DataFrame(numbers))


def subset_table(
    frame: pd.DataFrame, name: str, caption: str, methods: Mapping[str, str], metrics: Sequence[str]
) -> Table:
    """Tables 4 and 5: some methods under other names, one row each.

    Args:
        frame: of :func:`~milp_ray.comparison.scores.score_frame`.
        name: of the table's files.
        caption: of the table.
        methods: method -> its name in the table.
        metrics: scores to show.
    """
    shown = [one for one in SHOWN if one[0] in metrics]
    groups = [
        (str(d), str(m), Scores(part)) for (d, m), part in frame.groupby(["dataset", "model"], sort=False)
    ]
    header = ["", *(f"{d} {m} {heading}" for d, m, _ in groups for _, heading, _ in shown)]
    rows, numbers = [], []
    for method, label in methods.items():
        cells = []
        for dataset, model, scores in groups:
            for metric, _, factor in shown:
                own = scores.mean(method, metric)
                cells.append(_with_interval(own, factor))
                numbers.append(
                    {"row": label, "dataset": dataset, "model": model, "metric": metric} | _plain(own)
                )
        rows.append([label, *cells])
    return Table(name, caption, header, rows, pd.DataFrame(numbers))


def ranges_table(comparison: Comparison) -> Table:
    """Table 6: the search range of each factor."""
    memory = comparison.memory
    most = "the model's layers" if memory.max_loras is None else str(memory.max_loras)
    values = {
        "α (a layer has a LoRA)": "0, 1",
        "n (number of LoRAs)": f"1 to {most}",
        "r (rank)": ", ".join(map(str, memory.ranks)),
    }
    rows = [[factor, found] for factor, found in values.items()]
    return Table(
        "table_6_ranges",
        "Search range of each factor.",
        ["factor", "range"],
        rows,
        pd.DataFrame(rows, columns=["factor", "range"]),
    )


def costs_table(records: Sequence[CellRecord]) -> Table:
    """What each cell took."""
    numbers = []
    for record in records:
        users, cost, condition = max(1, len(record.users)), record.cost, record.cell.condition
        prompts = [user.prompt_tokens for user in record.users.values()]
        numbers.append(
            {
                "dataset": condition.dataset,
                "model": condition.model,
                "seed": condition.seed,
                "method": record.cell.method,
                "users": len(record.users),
                "failed": len(record.failed),
                "train_seconds_per_user": cost.train_seconds / users,
                "train_tokens": cost.train_tokens,
                "trials": cost.trials,
                "trainable_params": cost.trainable_params,
                "adapter_bytes": cost.adapter_bytes,
                "prompt_tokens": sum(prompts) / users,
                "answer_seconds": cost.answer_seconds,
                "commit": record.made_with.get("commit", ""),
                "note": record.note,
            }
        )
    shown: dict[str, tuple[str, Callable[[float], str]]] = {
        "train_seconds_per_user": ("training, s a user", lambda v: f"{v:.1f}"),
        "trials": ("trials", lambda v: f"{v:.0f}"),
        "trainable_params": ("trained parameters", lambda v: f"{v:,.0f}"),
        "adapter_bytes": ("stored, KiB a user", lambda v: f"{v / 1024:,.0f}"),
        "prompt_tokens": ("prompt, tokens", lambda v: f"{v:.0f}"),
        "answer_seconds": ("answering, s", lambda v: f"{v:.1f}"),
        "failed": ("users failed", lambda v: f"{v:.0f}"),
    }
    header = ["data", "model", "seed", "method", *(heading for heading, _ in shown.values())]
    rows = [
        [str(row["dataset"]), str(row["model"]), str(row["seed"]), str(row["method"])]
        + [text(float(str(row[name]))) for name, (_, text) in shown.items()]
        for row in numbers
    ]
    notes = ("Whatever is trained across users is divided among the compared users.",)
    return Table("costs", "What each cell took.", header, rows, pd.DataFrame(numbers), notes)


def _with_interval(found: Interval, factor: float) -> str:
    if found.users == 0:
        return "—"
    text = _number(found.value * factor, factor)
    if found.low == found.low:  # a bootstrap interval need not be symmetric
        text += f" [{_number(found.low * factor, factor)}, {_number(found.high * factor, factor)}]"
    return text


def _bracketed(control: Interval, factor: float) -> str:
    return f" ({_number(control.value * factor, factor)})" if control.users else ""


def _ends(found: Interval, factor: float) -> str:
    if found.users == 0:
        return "—"
    ends = (found.low, found.high) if found.low == found.low else ()
    inner = ", ".join(f"{end * factor:+.{_digits(factor)}f}" for end in ends)
    return f"{found.value * factor:+.{_digits(factor)}f}" + (f" [{inner}]" if inner else "")


def _number(value: float, factor: float) -> str:
    return f"{value:.{_digits(factor)}f}"


def _digits(factor: float) -> int:
    return 3 if factor == 1 else 2


def _plain(found: Interval) -> dict[str, object]:
    return {"mean": found.value, "low": found.low, "high": found.high, "users": found.users}
