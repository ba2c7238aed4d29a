"""What the command line prints of a run: the closing table, fronts, one user.

Reads the run folder's tables only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from milp_ray.errors import RunFolderError
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.tables import MODELS, read_table

if TYPE_CHECKING:
    from milp_ray.study.driver import Outcome

_MODEL_NAMES = {"base": "base, no memory", "own": "own memory", "other": "another user's"}
_PERCENT = ("rouge_1", "rouge_l", "persona_f1")


def closing_view(outcome: Outcome) -> RenderableType:
    """What a run ends with: choices, the three-way test table, where everything is."""
    folder = outcome.folder
    parts: list[RenderableType] = []
    if _has(folder, "chosen"):
        parts += [_chosen(folder), Text()]
    if _has(folder, "scores"):
        parts += [_scores(read_table(folder.table("scores"))), Text()]
    notes = [
        f"users: {outcome.users - outcome.users_without_memory} of {outcome.users} have a memory",
        *(f"left out: {count} users: {reason}" for reason, count in outcome.skipped.items()),
        f"failed trials: {outcome.trials_failed}",
        *(f"{name}: {seconds:.0f} s" for name, seconds in outcome.seconds.items()),
        f"run folder: {folder.root}",
    ]
    if outcome.interrupted:
        notes.append(f"stopped before the end; continue with: milp-ray resume {folder.root}")
    parts.append(Text("\n".join(notes)))
    return Group(*parts)


def fronts_view(folder: RunFolder) -> RenderableType:
    """Every user's front, the chosen point marked."""
    trials, chosen = _tables(folder)
    return Group(
        *(_front(trials[trials.user == alias], chosen, alias, folder) for alias in trials.user.unique())
    )


def user_view(folder: RunFolder, user: str) -> RenderableType:
    """One user: front, all trials, test scores.

    Raises:
        RunFolderError: the run has no such user.
    """
    trials, chosen = _tables(folder)
    alias = folder.alias(user)
    rows = trials[trials.user == alias]
    if rows.empty:
        known = ", ".join(trials.user.unique()[:5])
        raise RunFolderError(
            "the run has no such user",
            where=str(folder.root),
            expected=f"a raw user id, or an alias such as {known}",
            remedy="list the aliases with: milp-ray fronts RUN",
        )
    table = Table(title=f"trials of {alias}", title_justify="left", box=None)
    shown = ["trial", "state", "placement", "trainable_params", *_measured(folder), "reason"]
    for name in dict.fromkeys(shown):
        table.add_column(name)
    for _, row in rows.iterrows():
        table.add_row(*(_cell(name, row[name]) for name in dict.fromkeys(shown)))
    parts: list[RenderableType] = [_front(rows, chosen, alias, folder), Text(), table]
    if _has(folder, "scores"):
        scores = read_table(folder.table("scores"))
        parts += [Text(), _scores(scores[scores.user == alias])]
    return Group(*parts)


def _tables(folder: RunFolder) -> tuple[pd.DataFrame, pd.DataFrame]:
    if not _has(folder, "trials"):
        raise RunFolderError(
            "the run has no tables yet",
            where=str(folder.root),
            expected="a run that ended or was stopped",
            remedy=f"continue it with: milp-ray resume {folder.root}",
        )
    return read_table(folder.table("trials")), read_table(folder.table("chosen"))


def _has(folder: RunFolder, name: str) -> bool:
    return Path(f"{folder.table(name)}.parquet").exists()


def _measured(folder: RunFolder) -> list[str]:
    return [name for name in folder.study.objectives if name != "trainable_params"]


def _chosen(folder: RunFolder) -> Table:
    trials, chosen = _tables(folder)
    base = trials[trials.state == "no memory"].set_index("user")
    title = f"chosen configurations ({folder.study.choose.policy})"
    table = Table(title=title, title_justify="left", box=None)
    for name in ("user", "trial", "on front", "placement (layer:rank)", "trainable"):
        table.add_column(name, justify="left" if name in ("user", "placement (layer:rank)") else "right")
    for name in _measured(folder):
        table.add_column(name, justify="right")
        table.add_column("no memory", justify="right", style="dim")
    for _, row in chosen.iterrows():
        on_front = int(trials[(trials.user == row["user"]) & trials.on_front].shape[0])
        cells = [
            row["user"],
            f"t{row['trial']:04d}",
            str(on_front),
            row["placement"],
            f"{row['trainable_params']:,}",
        ]
        for name in _measured(folder):
            cells.append(_cell(name, row[name]))
            cells.append(_cell(name, base.loc[row["user"], name]) if row["user"] in base.index else "")
        table.add_row(*cells)
    return table


def _front(rows: pd.DataFrame, chosen: pd.DataFrame, alias: str, folder: RunFolder) -> Table:
    table = Table(title=f"front of {alias}", title_justify="left", box=None)
    names = [*_measured(folder), "trainable_params", "num_loras", "rank", "placement"]
    for name in ["", "trial", *names]:
        table.add_column(name)
    picked = set(chosen[chosen.user == alias].trial) if len(chosen) else set()
    shown = rows[rows.on_front | (rows.state == "no memory")].sort_values(list(_measured(folder))[:1])
    for _, row in shown.iterrows():
        mark = "chosen" if row["trial"] in picked else "no memory" if row["trial"] < 0 else ""
        label = "" if row["trial"] < 0 else f"t{row['trial']:04d}"
        table.add_row(mark, label, *(_cell(name, row[name]) for name in names))
    return table


def _scores(scores: pd.DataFrame) -> Table:
    table = Table(title="test scores (ROUGE and Persona-F1 × 100)", title_justify="left", box=None)
    for name in ("user", "model", "samples", "loss", *_PERCENT):
        table.add_column(name, justify="left" if name in ("user", "model") else "right")
    for alias in scores.user.unique():
        rows = scores[scores.user == alias].set_index("model")
        for model in [m for m in MODELS if m in rows.index]:
            row = rows.loc[model]
            values = [_cell(name, row[name]) for name in ("loss", *_PERCENT)]
            table.add_row(
                alias if model == "base" else "", _MODEL_NAMES[model], str(int(row["samples"])), *values
            )
    if scores.user.nunique() > 1:
        means = scores.groupby("model")[["loss", *_PERCENT]].mean()
        for index, model in enumerate(m for m in MODELS if m in means.index):
            values = [_cell(name, means.loc[model, name]) for name in ("loss", *_PERCENT)]
            table.add_row("mean over users" if index == 0 else "", _MODEL_NAMES[model], "", *values)
    return table


def _cell(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    number = float(str(value))
    if number != number:  # NaN: not measured
        return ""
    if name in _PERCENT:
        return f"{100 * number:.2f}"
    return f"{number:.4f}" if name == "loss" else f"{int(number):,}"
