"""All users of a run together: fronts, hypervolume, winning placements, cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from milp_ray.report.html.figures import (
    FigureSpec,
    gains_figure,
    node_figure,
    overlay_figure,
    progress_figure,
    stage_figure,
    winners_figure,
)
from milp_ray.report.html.run_data import STAGES, RunData
from milp_ray.report.html.worker_timeline import NO_TIMES, timeline_figure, timeline_of, timeline_rows


@dataclass(frozen=True)
class PopulationSection:
    """Figures, rows of a table on the cost, and what is missing."""

    figures: list[FigureSpec]
    cost: list[tuple[str, str]]
    missing: str


def population_section(run: RunData, table: pd.DataFrame, drawn: Sequence[str]) -> PopulationSection:
    """What is drawn of all users; of fronts those of the drawn users."""
    figures = []
    if table.gain.notna().any():
        labels = {"gain": "over no memory", "gain_other": "over another user's"}
        figures.append(gains_figure(table, labels, "gain in test loss (nats per token)"))
    elif table.rank_by.notna().any():
        name = run.measured[0]
        figures.append(
            gains_figure(table, {"rank_by": f"{name} over no memory"}, f"validation gain in {name}")
        )
    names = [*run.measured, *(name for name in run.study.objectives if name not in run.measured)]
    if len(names) > 1 and len(drawn) > 1:
        figures.append(overlay_figure(run.trials, names, drawn))
    curves = {str(user): list(rows.hypervolume) for user, rows in run.hypervolume.groupby("user")}
    if len(curves) > 1:  # that of one search is in its own section
        figures.append(progress_figure(curves))
    figures.append(_winners(run))
    line = timeline_of(run)
    figures += [timeline_figure(line)] if line is not None else []
    figures += _costs(run)
    times = timeline_rows(line) if line is not None else []
    return PopulationSection(figures, [*_cost_rows(run), *times], NO_TIMES if line is None else "")


def layers_of(run: RunData) -> int:
    """How many layers the base has, as the searched gates tell; else the highest that is used."""
    gates = run.trials.gates.map(len).max()
    if gates and gates == gates:
        return int(gates)
    keys = run.trials.placement[run.trials.placement != ""]
    used = (int(part.partition(":")[0]) for key in keys for part in key.partition(";")[0].split(","))
    return 1 + max(used, default=-1)


def _winners(run: RunData) -> FigureSpec:
    """Of one search a single placement is chosen, which says little: there the front counts."""
    if run.trials.user.nunique() > 1:
        return winners_figure(list(run.chosen.placement), layers_of(run), "chosen placements")
    front = run.trials[run.trials.on_front]
    return winners_figure(list(front.placement), layers_of(run), "placements on the front")


def _costs(run: RunData) -> list[FigureSpec]:
    ended = run.trials[run.trials.state != "pending"]
    if ended[list(STAGES)].isna().all(axis=None):
        return []
    if not ended[list(STAGES)].sum(axis=None) > 0:  # simulated trials may take no time at all
        return []
    trials = ended[ended.trial >= 0]  # measuring without a memory trains nothing
    seconds = {stage.removesuffix("_seconds"): list(trials[stage].dropna()) for stage in STAGES}
    figures = [stage_figure(seconds)]
    by_node = ended.assign(hours=ended[list(STAGES)].sum(axis=1) / 3600).groupby("node").hours.sum()
    by_node = by_node[by_node.index != ""]
    if len(by_node) > 1:
        workers = run.study.ray.workers_per_trial
        figures.append(node_figure({str(node): float(hours) * workers for node, hours in by_node.items()}))
    return figures


def _cost_rows(run: RunData) -> list[tuple[str, str]]:
    """Sums over all that ended, and medians over trials."""
    ended = run.trials[run.trials.state != "pending"]
    trials = ended[ended.trial >= 0]
    rows = []
    for stage in STAGES:
        values = ended[stage].dropna()
        if len(values):
            name = stage.removesuffix("_seconds")
            rows.append(
                (f"{name}, s", f"{values.sum():,.0f} in all, {trials[stage].median():,.2f} a trial (median)")
            )
    if ended.train_tokens.notna().any():
        tokens = ended.train_tokens.dropna()
        rows.append(
            (
                "tokens trained on",
                f"{tokens.sum():,.0f} in all, {trials.train_tokens.median():,.0f} a trial (median)",
            )
        )
    if (ended.gpu_memory > 0).any():
        rows.append(("GPU memory, most", f"{ended.gpu_memory.max() / 2**30:,.1f} GiB"))
    attempts = ended.attempts.dropna().astype(int).value_counts().sort_index()
    if len(attempts):
        told = ", ".join(f"{attempt}: {count:,} trials" for attempt, count in attempts.items())
        rows.append(("attempts", told))
    if nodes := ended.node[ended.node != ""].nunique():
        rows.append(("nodes", f"{nodes:,}"))
    return rows or [("cost", "no trial has one")]
