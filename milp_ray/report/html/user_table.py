"""One row a user: where the search stands, what was chosen, and what it is worth.

Of a run whose population was searched, the row ``population`` is the search, and the users' rows
hold their test scores alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from milp_ray.config.objectives import OBJECTIVES
from milp_ray.ids import POPULATION
from milp_ray.report.html.run_data import RunData

#: States of a user, in the order in which they are reached.
STATES = ("waiting", "searching", "searched", "tested", "failed", "not tested")
MOST_DRAWN = 24


def user_table(run: RunData) -> pd.DataFrame:
    """The rows, by alias.

    Columns: ``state`` (:data:`STATES`), ``done``, ``failed``, ``pending``, ``front`` (numbers of
    trials), ``hypervolume``, ``chosen`` (trial), ``placement``, ``params``; ``base_<objective>``
    and ``chosen_<objective>`` on validation samples; test losses ``loss_base``, ``loss_own`` and
    ``loss_other``; ``gain`` and ``gain_other``, nats per token by which the own memory is better;
    ``rank_by``, by which users are ordered: the gain, or where nobody was tested the validation
    gain in the first measured objective.
    """
    searched = [POPULATION] if run.is_population else []
    table = pd.DataFrame(index=pd.Index([*searched, *run.aliases], name="user"))
    trials = run.trials
    for state, column in (("done", "done"), ("failed", "failed"), ("pending", "pending")):
        table[column] = trials[trials.state == state].user.value_counts()
    table["front"] = trials[trials.on_front].user.value_counts()
    table[["done", "failed", "pending", "front"]] = (
        table[["done", "failed", "pending", "front"]].fillna(0).astype(int)
    )
    table["hypervolume"] = pd.to_numeric(run.hypervolume.groupby("user").hypervolume.last())
    chosen = run.chosen.drop_duplicates("user").set_index("user")
    table["chosen"], table["placement"] = chosen["trial"], chosen["placement"]
    table["params"] = chosen["trainable_params"]
    base = trials[trials.state == "no memory"].drop_duplicates("user").set_index("user")
    for name in run.measured:
        table[f"base_{name}"], table[f"chosen_{name}"] = base[name], chosen[name]
    for model in ("base", "own", "other"):
        table[f"loss_{model}"] = (
            run.scores[run.scores.model == model].drop_duplicates("user").set_index("user")["loss"]
        )
    table["gain"] = table.loss_base - table.loss_own
    table["gain_other"] = table.loss_other - table.loss_own
    table["state"] = _states(run, table)
    first = run.measured[0]
    turned = 1.0 if OBJECTIVES[first].direction == "max" else -1.0
    validation = turned * (table[f"chosen_{first}"] - table[f"base_{first}"])
    table["rank_by"] = table.gain if table.gain.notna().any() else validation
    return table.copy()  # column by column it lies in pieces


def is_complete(run: RunData, table: pd.DataFrame) -> bool:
    """Whether nothing of the run is left to do, as far as its files tell."""
    final = run.study.final.automatic and run.study.simulation is None
    over = {"tested", "failed", "not tested"} if final else {"searched", "tested", "failed", "not tested"}
    rows = table.drop(index=POPULATION, errors="ignore") if final and run.is_population else table
    if not final and run.is_population:
        rows = table.loc[[POPULATION]]
    return bool(rows.state.isin(over).all())


def drawn(table: pd.DataFrame, most: int = MOST_DRAWN) -> list[str]:
    """The users that are drawn in full, best first: all, or best, median, worst and failed ones.

    A quarter each, and what one quarter leaves free goes to the best. The population comes first.
    """
    first = [str(alias) for alias in table.index if alias == POPULATION]
    rows = table[(table.done + table.failed > 0) & (table.index != POPULATION)]
    if len(first) + len(rows) <= most:
        return [*first, *map(str, rows.sort_values("rank_by", ascending=False, kind="stable").index)]
    failed = rows[rows.state.isin(["failed", "not tested"])]
    ranked = rows[rows.rank_by.notna()].sort_values("rank_by", ascending=False, kind="stable")
    others = rows[rows.rank_by.isna() & ~rows.index.isin(failed.index)]
    share = (most - len(first)) // 4
    middle = max(0, (len(ranked) - share) // 2)
    picked = [
        *ranked.index[:share],
        *ranked.index[middle : middle + share],
        *ranked.index[-share:],
        *failed.index[:share],
        *ranked.index[share:],
        *others.index,
        *failed.index[share:],
    ]
    unique = list(dict.fromkeys(map(str, picked)))[: most - len(first)]
    place = {alias: position for position, alias in enumerate([*ranked.index, *others.index, *failed.index])}
    return [*first, *sorted(unique, key=lambda alias: place[alias])]


def _states(run: RunData, table: pd.DataFrame) -> Sequence[str]:
    budget = run.study.search.trials
    if run.placements is not None:
        budget = min(budget, run.placements)
    ended, measured = table.done + table.failed, table.loss_own.notna()
    over = (ended >= budget) & (table.pending == 0)
    # With a final job behind it, a run that nobody holds has tested whom it could.
    tested_all = bool(measured.any()) and not run.held and run.study.final.automatic
    states = []
    for alias in table.index:
        owner = run.is_population and alias != POPULATION
        search = POPULATION if owner else alias
        if measured[alias]:
            states.append("tested")
        elif owner and ended.get(POPULATION, 0) > 0:
            states.append("searching" if not over[POPULATION] else "searched")
        elif ended[search] + table.pending[search] == 0:
            states.append("waiting")
        elif not over[search]:
            states.append("searching")
        elif table.done[search] == 0:
            states.append("failed")
        else:
            states.append("not tested" if tested_all and alias != POPULATION else "searched")
    return states
