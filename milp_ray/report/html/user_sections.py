"""One user in full, and every user as a row of numbers for the search box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from milp_ray.config.models import ChooseSettings
from milp_ray.config.objectives import OBJECTIVES
from milp_ray.evaluation.metrics import SCORES
from milp_ray.ids import POPULATION
from milp_ray.report.console import layers_by_rank
from milp_ray.report.html.figures import (
    FigureSpec,
    coordinates_figure,
    front_figure,
    hypervolume_figure,
    measured_figure,
    number,
    placement_figure,
)
from milp_ray.report.html.population_section import layers_of
from milp_ray.report.html.run_data import RunData
from milp_ray.study.tables import MODELS

MODEL_NAMES = {
    "base": "no memory",
    "shared": "shared adapter",
    "own": "own memory",
    "other": "another user's",
}


@dataclass(frozen=True)
class UserSection:
    """A user in full.

    Attributes:
        alias: or ``population``.
        summary: one line.
        why: what was chosen, and by which policy.
        figures: of the user's search.
        heads, scores: columns and rows of the test scores; no rows without any.
    """

    alias: str
    summary: str
    why: str
    figures: list[FigureSpec]
    heads: list[str]
    scores: list[list[str]]


def user_section(run: RunData, table: pd.DataFrame, alias: str) -> UserSection:
    """Everything of one user that is drawn."""
    rows = run.trials[run.trials.user == alias]
    row: Mapping[str, Any] = {str(name): value for name, value in table.loc[[alias]].iloc[0].items()}
    chosen = None if pd.isna(row["chosen"]) else int(row["chosen"])
    figures: list[FigureSpec] = []
    if (rows.state == "done").any():
        names = [*run.measured, *(name for name in run.study.objectives if name not in run.measured)]
        volumes = run.hypervolume[run.hypervolume.user == alias].hypervolume
        figures = [
            front_figure(rows, names, chosen, alias),
            hypervolume_figure(list(volumes), alias),
            placement_figure(rows, layers_of(run), chosen, alias),
            coordinates_figure(rows, names, chosen, alias),
        ]
        mine = run.by_user if alias == POPULATION else run.by_user.iloc[:0]
        if len(mine) and chosen is not None:
            figures.append(measured_figure(mine, run.measured[0], chosen))
    heads, scores = _scores(run.scores[run.scores.user == alias])
    return UserSection(alias, _summary(run, row), _why(run, row, chosen), figures, heads, scores)


def user_rows(run: RunData, table: pd.DataFrame) -> dict[str, Any]:
    """Every user's numbers, compact: names of the columns, and a list a user, in their order."""
    names = [f"{name} ({part})" for name in run.measured for part in ("no memory", "chosen")]
    last = {
        "loss_base": "test loss (no memory)",
        "loss_own": "test loss (own)",
        "loss_other": "test loss (another's)",
        "gain": "test gain",
        "hypervolume": "hypervolume",
    }
    last = {column: label for column, label in last.items() if table[column].notna().any()}
    columns = ["user", "state", "done", "failed", "front", *names, *last.values(), "rank: layers"]
    values = [f"{part}_{name}" for name in run.measured for part in ("base", "chosen")]
    texts = {key: layers_by_rank(str(key)) for key in set(table.placement.dropna())}
    columns_of = [table[name].tolist() for name in (*values, *last)]
    rows = [
        [
            str(alias),
            *head,
            *(number(column[index]) for column in columns_of),
            texts.get(place, ""),
        ]
        for index, (alias, place, *head) in enumerate(
            zip(
                table.index, table.placement, table.state, table.done.tolist(), table.failed.tolist(),
                table.front.tolist(), strict=True,
            )
        )
    ]  # fmt: skip
    return {"columns": columns, "rows": rows}


def policy_words(settings: ChooseSettings) -> str:
    """What a policy chooses, in words."""
    kind, _, name = settings.policy.partition(":")
    if kind == "best":
        return f"of the front the trial with the best {name}"
    if kind == "budget":
        return (
            f"of all trials with at most {settings.budget:,} trainable parameters the best in the first "
            "objective; if there is none, the smallest"
        )
    return (
        "the balanced trial: the largest sum of objectives, each scaled from 0 to 1 over the front (of two "
        "objectives the one farthest from the line through the front's ends)"
    )


def _summary(run: RunData, row: Mapping[str, Any]) -> str:
    parts = [str(row["state"]), f"{row['done']} trials measured"]
    if row["failed"]:
        parts.append(f"{row['failed']} failed")
    if row["pending"]:
        parts.append(f"{row['pending']} pending")
    if not pd.isna(row["gain"]):
        parts.append(f"test gain {row['gain']:+.4f} nats per token")
    elif not pd.isna(row["rank_by"]):
        parts.append(f"validation gain in {run.measured[0]} {row['rank_by']:+.4f}")
    if not pd.isna(row["hypervolume"]):
        parts.append(f"hypervolume {number(row['hypervolume'], 4)}")
    return ", ".join(parts)


def _why(run: RunData, row: Mapping[str, Any], chosen: int | None) -> str:
    settings = run.study.choose
    if chosen is None:
        return (
            "Nothing is chosen: no trial was measured, or the run goes on and its tables are not there yet."
        )
    values = ", ".join(
        f"{name} {number(row[f'chosen_{name}'])}"
        + ("" if pd.isna(row[f"base_{name}"]) else f" (no memory {number(row[f'base_{name}'])})")
        for name in run.measured
    )
    size = "" if pd.isna(row["params"]) else f", {int(row['params']):,} trainable parameters"
    return (
        f"Chosen is t{chosen:04d} by the policy {settings.policy}: {policy_words(settings)}. It has {values}"
        f"{size}; rank: layers {layers_by_rank(str(row['placement']))}."
    )


def _scores(rows: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    names = [name for name in SCORES if name in rows.columns and rows[name].notna().any()]
    by_model = {str(row["model"]): row for row in rows.to_dict("records")}
    body = [
        [
            MODEL_NAMES[model],
            str(int(by_model[model]["samples"])),
            *(_cell(name, by_model[model][name]) for name in names),
        ]
        for model in MODELS
        if model in by_model
    ]
    return ["model", "samples", *(name if name == "loss" else f"{name} × 100" for name in names)], body


def _cell(name: str, value: object) -> str:
    found = number(value, 12)
    if found is None:
        return ""
    return f"{found:.4f}" if name == "loss" else f"{100 * found:.2f}"


def drawn_words(table: pd.DataFrame, drawn: Sequence[str]) -> str:
    """Who is drawn, and why these."""
    if POPULATION in table.index:
        return "One placement was searched for everybody: it is drawn here. The search box finds every user."
    searched = int((table.done + table.failed > 0).sum())
    if len(drawn) >= searched:
        return "Every user with a trial is drawn."
    return (
        f"{len(drawn)} of {searched:,} are drawn: the best, those around the median, the worst and failed "
        "ones, by the test gain (untested: the validation gain). The search box finds the others."
    )


def direction_words(names: Sequence[str]) -> str:
    """Which way is better, objective by objective."""
    return "; ".join(OBJECTIVES[name].label for name in names)
