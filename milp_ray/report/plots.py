"""Plots of a run, as PNG: each user's front, and hypervolume over trials.

Drawn from the tables alone (see :mod:`milp_ray.study.tables`), so no Ray and no model is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from milp_ray.config.objectives import OBJECTIVES
from milp_ray.report.colours import BLUE, GREEN, GREY, ORANGE
from milp_ray.storage import atomic_write
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.tables import read_table

_MOST_FRONTS = 50


def front_plot(
    trials: pd.DataFrame, objectives: Sequence[str], chosen: int | None, title: str, path: Path
) -> None:
    """All trials of one user over two objectives; front, no memory and choice marked.

    Args:
        trials: the user's rows of the trials table.
        objectives: names; with a single one the values are drawn over the trial numbers.
        chosen: number of the chosen trial.
        title: alias of the user.
        path: of the PNG.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.8), layout="constrained")
    done = trials[trials.state == "done"]
    base = trials[trials.state == "no memory"]
    x, y = (objectives[0], objectives[1]) if len(objectives) > 1 else ("trial", objectives[0])
    axes.scatter(done[x], done[y], s=26, color=GREY, label="trial", zorder=2)
    front = done[done.on_front].sort_values(x)
    if len(objectives) == 2:
        # The best y that is reached at each x.
        where = "pre" if OBJECTIVES[x].direction == "max" else "post"
        axes.step(front[x], front[y], where=where, color=BLUE, linewidth=1.2, zorder=3)
    axes.scatter(front[x], front[y], s=40, color=BLUE, label="front", zorder=4)
    if len(base) and x == "trial":
        axes.axhline(float(base[y].iloc[0]), color=ORANGE, linestyle="--", label="no memory")
    elif len(base):
        axes.scatter(base[x], base[y], s=70, marker="X", color=ORANGE, label="no memory", zorder=5)
    picked = done[done.trial == chosen]
    axes.scatter(
        picked[x], picked[y], s=230, marker="*", color=GREEN, edgecolor="black", label="chosen", zorder=6
    )
    for row in front.itertuples():
        label = f"t{row.trial}"
        axes.annotate(
            label, (getattr(row, x), getattr(row, y)), textcoords="offset points", xytext=(6, 5), size=8
        )
    axes.set(xlabel="trial" if x == "trial" else OBJECTIVES[x].label, ylabel=OBJECTIVES[y].label, title=title)
    _finish(axes)
    axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def draw_run(folder: RunFolder) -> list[Path]:
    """Draw every plot of a run from its tables, if there are any; returns the files.

    Fronts are drawn for the first users only: at a third of a second each, a thousand would take
    minutes.
    """
    if not folder.layout.table("trials").with_suffix(".parquet").exists():
        return []
    trials, chosen = read_table(folder.layout.table("trials")), read_table(folder.layout.table("chosen"))
    picked = dict(zip(chosen.user, chosen.trial, strict=True)) if len(chosen) else {}
    paths = []
    for alias, rows in islice(trials.groupby("user", sort=False), _MOST_FRONTS):
        if (rows.state == "done").any():
            paths.append(folder.layout.plot(f"front-{alias}"))
            front_plot(rows, folder.study.objectives, picked.get(alias), f"Front of {alias}", paths[-1])
    curves = {
        str(alias): list(rows.hypervolume)
        for alias, rows in read_table(folder.layout.table("hypervolume")).groupby("user", sort=False)
    }
    paths.append(folder.layout.plot("hypervolume"))
    hypervolume_plot(curves, paths[-1])
    return paths


def hypervolume_plot(curves: Mapping[str, Sequence[float]], path: Path) -> None:
    """Hypervolume of each user's front after every trial, as a share of the last value.

    The scale is relative because the objectives' units differ from user to user. Beyond eight users
    the median and the quartiles over users are drawn instead of one line each.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    curves = {
        alias: [v / curve[-1] for v in curve] for alias, curve in curves.items() if curve and curve[-1] > 0
    }
    if len(curves) <= 8:
        for alias, curve in curves.items():
            axes.step(range(1, len(curve) + 1), curve, where="post", label=alias)
    else:
        frame = pd.DataFrame({alias: pd.Series(curve) for alias, curve in curves.items()}).ffill()
        count = range(1, len(frame) + 1)
        low, middle, high = (frame.quantile(q, axis=1) for q in (0.25, 0.5, 0.75))
        axes.fill_between(count, low, high, step="post", alpha=0.25, color=BLUE, label="quartiles")
        axes.step(count, middle, where="post", color=BLUE, label=f"median of {len(curves)} users")
    axes.set(
        xlabel="finished trials",
        ylabel="hypervolume / final hypervolume",
        title="Hypervolume over trials",
        ylim=(-0.02, 1.05),
    )
    _finish(axes)
    if curves:
        axes.legend(frameon=False, fontsize=9)
    else:
        axes.text(
            0.5, 0.5, "no user's trials beat the reference point yet", ha="center", transform=axes.transAxes
        )
    _save(figure, path)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    atomic_write(path, lambda draft: figure.savefig(draft, format="png", dpi=130))
    plt.close(figure)
