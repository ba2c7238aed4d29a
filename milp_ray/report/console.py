"""What the command line prints of a run: the closing table, fronts, one user.

Reads the run folder's tables only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from milp_ray.config.objectives import OBJECTIVES, instead_of
from milp_ray.evaluation.metrics import SCORES
from milp_ray.ids import POPULATION
from milp_ray.memory.adapter_notes import NOTE, check_note, noted_placement
from milp_ray.memory.placement import Placement
from milp_ray.storage import pull
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.tables import MODELS, has_table, read_table, search_tables

if TYPE_CHECKING:
    from milp_ray.study.run import Outcome

_MODEL_NAMES = {
    "base": "no memory",
    "shared": "shared adapter",
    "own": "own memory",
    "other": "another user's",
}
_FEW_TRIALS = 4  # fewer are not called constant
_MOST_USERS = 50  # in the closing tables; means are those of all
_PERCENT = tuple(name for name in SCORES if name != "loss")


def outcome_view(outcome: Outcome) -> RenderableType:
    """The tables that a run ends with: choices, and the three-way test."""
    folder = outcome.folder
    parts: list[RenderableType] = []
    if has_table(folder, "chosen"):
        parts += [_chosen(folder), Text()]
    if has_table(folder, "scores") and len(scores := read_table(folder.layout.table("scores"))):
        parts += [_scores(scores), Text()]
    return Group(*parts)


def outcome_lines(outcome: Outcome) -> Text:
    """What a run ends with beside its tables.

    To be printed with ``soft_wrap``: it holds commands and paths, to be copied whole.
    """
    folder = outcome.folder
    notes = [
        _memories(outcome),
        *(f"left out: {count} users: {reason}" for reason, count in outcome.skipped.items()),
        *_warnings(folder),
        f"failed trials: {outcome.trials_failed}",
        *([f"failed no-memory measurements: {outcome.baselines_failed}"] if outcome.baselines_failed else []),
        *([f"users whose test failed: {outcome.users_untested}"] if outcome.users_untested else []),
        *([outcome.metrics.line()] if outcome.metrics and outcome.metrics.workers else []),
        *(f"{name}: {seconds:.0f} s" for name, seconds in outcome.seconds.items()),
        f"run folder: {folder.location}",
    ]
    if outcome.interrupted:
        notes.append(f"stopped before the end; continue with: milp-ray resume {folder.location}")
    return Text("\n".join(notes))


def _memories(outcome: Outcome) -> str:
    if outcome.folder.study.simulation is not None:
        return (
            f"users: {outcome.users}, simulated: the values above are those of a synthetic problem; "
            "no model was trained, and there is no final stage"
        )
    if not outcome.trained:
        return f"users: {outcome.users}; train their memories with: milp-ray final {outcome.folder.location}"
    return f"users: {outcome.users - outcome.users_without_memory} of {outcome.users} have a memory"


def _warnings(folder: RunFolder) -> list[str]:
    """Said plainly: users for whom the search found nothing better than no memory."""
    if not has_table(folder, "chosen"):
        return []
    trials, chosen = search_tables(folder)
    lines = _constant(folder, trials)
    base = trials[trials.state == "no memory"].set_index("user")
    rows = chosen[chosen.user.isin(base.index)] if len(chosen) else chosen
    worse = sum(
        all(
            OBJECTIVES[name].maximized(row[name] - base[name][row["user"]]) <= 0 for name in _measured(folder)
        )
        for _, row in rows.iterrows()
    )
    if worse:
        lines.append(
            f"no better than no memory on validation samples: {_of_searched(folder, worse, len(rows))}"
        )
    return lines


def _constant(folder: RunFolder, trials: pd.DataFrame) -> list[str]:
    """Objectives that were constant in all trials of a user, and what to do about them."""
    done = trials[trials.state == "done"]
    values = done.groupby("user")[_measured(folder)].agg(["nunique", "count"])
    found = {}
    for name in _measured(folder):
        same = int(((values[name]["nunique"] == 1) & (values[name]["count"] >= _FEW_TRIALS)).sum())
        if same:
            found[name] = f"{name} is the same in every trial of {_of_searched(folder, same, len(values))}"
    if not found:
        return []
    return [
        *found.values(),
        f"what is constant decides nothing: {instead_of(list(found), folder.study.objectives)}",
    ]


def _of_searched(folder: RunFolder, count: int, searches: int) -> str:
    """How many of those that were searched."""
    return f"the {POPULATION}" if folder.study.unit == "population" else f"{count} of {searches} users"


def fronts_view(folder: RunFolder) -> RenderableType:
    """Every user's front, the chosen point marked."""
    trials, chosen = search_tables(folder)
    return Group(
        *(_front(trials[trials.user == alias], chosen, alias, folder) for alias in trials.user.unique())
    )


def user_view(folder: RunFolder, user: str) -> RenderableType:
    """One user: front, all trials, test scores; or the population that was searched for all.

    Of a user for whom the population was searched, only the test scores are the user's own.

    Raises:
        RunFolderError: the run has no such user, or its memory is another user's.
    """
    trials, chosen = search_tables(folder)
    alias = folder.alias(user)
    scores = read_table(folder.layout.table("scores")) if has_table(folder, "scores") else None
    own = scores[scores.user == alias] if scores is not None else None
    if trials[trials.user == alias].empty:
        if own is None or own.empty:
            known = ", ".join(
                pd.concat([trials.user, *([scores.user] if scores is not None else [])]).unique()[:5]
            )
            raise folder.no_such_user(f"a raw user id, or an alias such as {known}")
        searched = Text(f"the placement was searched for the {POPULATION}: milp-ray show RUN {POPULATION}")
        return Group(searched, *_earlier_choice(folder, alias, POPULATION, chosen), Text(), _scores(own))
    rows = trials[trials.user == alias]
    table = _table(f"trials of {alias}")
    shown = ["trial", "state", *_measured(folder), "trainable_params", "placement", "reason"]
    for name in shown:
        table.add_column(name, overflow="fold", no_wrap=name not in ("placement", "reason"))
    for _, row in rows.iterrows():
        table.add_row(*("" if row[name] == -1 else _cell(name, row[name]) for name in shown))
    parts: list[RenderableType] = [_front(rows, chosen, alias, folder), Text(), table]
    parts += _earlier_choice(folder, alias, alias, chosen)
    if own is not None and (alias != POPULATION or len(own)):
        parts += [Text(), _scores(own)]
    return Group(*parts)


def _earlier_choice(
    folder: RunFolder, alias: str, searched: str, chosen: pd.DataFrame
) -> list[RenderableType]:
    """A note where the memory is not of the chosen placement, as after more trials."""
    memory = folder.layout.memory(alias)
    pull(memory, NOTE)
    check_note(memory, user=alias)
    now = set(chosen[chosen.user == searched].placement)
    if noted_placement(memory) in (None, *now):
        return []
    return [
        Text(),
        Text(f"the memory is of an earlier choice: milp-ray final {folder.location} trains it anew"),
    ]


def _measured(folder: RunFolder) -> list[str]:
    return [name for name in folder.study.objectives if not OBJECTIVES[name].exact]


def _chosen(folder: RunFolder) -> Table:
    trials, chosen = search_tables(folder)
    base = trials[trials.state == "no memory"].set_index("user")
    table = _table(f"chosen configurations ({folder.study.choose.policy}), on validation samples")
    for name in ("user", "trial", "front", "trainable", *_measured(folder)):
        table.add_column(name, justify="left" if name == "user" else "right", no_wrap=True)
    table.add_column("rank: layers", overflow="fold")
    for _, row in chosen.head(_MOST_USERS).iterrows():
        front = int(((trials.user == row["user"]) & trials.on_front).sum())
        cells = [row["user"], f"t{row['trial']:04d}", str(front), f"{row['trainable_params']:,}"]
        for name in _measured(folder):
            before = base[name].get(row["user"])
            cells.append(_cell(name, row[name]) + ("" if before is None else f" ({_cell(name, before)})"))
        table.add_row(*cells, layers_by_rank(row["placement"]))
    table.caption = "front: its number of trials; in brackets: without a memory"
    if len(chosen) > _MOST_USERS:
        table.caption += f"\n… {len(chosen) - _MOST_USERS} more users: see tables/chosen.csv"
    table.caption_justify = "left"
    return table


def _front(rows: pd.DataFrame, chosen: pd.DataFrame, alias: str, folder: RunFolder) -> Table:
    table = _table(f"front of {alias}")
    names = [*_measured(folder), "trainable_params", "num_loras", "rank", "placement"]
    for name in ["", "trial", *names]:
        table.add_column(name, overflow="fold", no_wrap=name != "placement")
    picked = set(chosen[chosen.user == alias].trial) if len(chosen) else set()
    shown = rows[rows.on_front | (rows.state == "no memory")].sort_values(list(_measured(folder))[:1])
    for _, row in shown.iterrows():
        mark = "chosen" if row["trial"] in picked else "no memory" if row["trial"] < 0 else ""
        label = "" if row["trial"] < 0 else f"t{row['trial']:04d}"
        table.add_row(mark, label, *(_cell(name, row[name]) for name in names))
    return table


def _scores(scores: pd.DataFrame) -> Table:
    table = _table("test scores (ROUGE, chrF and Persona-F1 × 100)")
    table.collapse_padding = True  # eight columns fit a terminal of 80
    for name in ("user", "model", "samples", "loss", *_PERCENT):
        table.add_column(name, justify="left" if name in ("user", "model") else "right", no_wrap=True)
    # Runs of earlier versions lack some scores.
    scores = scores.reindex(columns=["user", "model", "samples", *SCORES])
    for alias in scores.user.unique()[:_MOST_USERS]:
        rows = scores[scores.user == alias].set_index("model")
        for model in [m for m in MODELS if m in rows.index]:
            row = rows.loc[model]
            values = [_cell(name, row[name]) for name in ("loss", *_PERCENT)]
            table.add_row(
                alias if model == "base" else "", _MODEL_NAMES[model], str(int(row["samples"])), *values
            )
    if scores.user.nunique() > 1:
        means = scores.groupby("model")[list(SCORES)].mean()
        for index, model in enumerate(m for m in MODELS if m in means.index):
            values = [_cell(name, means.loc[model, name]) for name in ("loss", *_PERCENT)]
            table.add_row("mean over users" if index == 0 else "", _MODEL_NAMES[model], "", *values)
    return table


def layers_by_rank(key: str) -> str:
    """A placement for people: ``0:8,1:8,2:8,5:16`` as ``16: 5; 8: 0-2``."""
    placement, groups = Placement.from_key(key), dict[int, list[int]]()
    for layer, rank in placement.ranks:
        groups.setdefault(rank, []).append(layer)
    parts = [f"{rank}: {_runs(layers)}" for rank, layers in sorted(groups.items(), reverse=True)]
    return "; ".join([*parts, *(f"{name} {value:g}" for name, value in placement.settings)])


def _runs(layers: list[int]) -> str:
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False)


def _cell(name: str, value: object) -> str:
    if isinstance(value, str):
        return layers_by_rank(value) if name == "placement" else value
    number = float(str(value))
    if number != number:  # NaN: not measured
        return ""
    if name in _PERCENT:
        return f"{100 * number:.2f}"
    if name in OBJECTIVES and not OBJECTIVES[name].is_count:
        return f"{number:.4f}"
    return f"{int(number):,}"
