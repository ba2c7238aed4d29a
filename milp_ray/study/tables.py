"""The tables of a run (pandas), as parquet and as CSV: trials, fronts, chosen, scores.

All are derived from the event logs and the score files, and can be made again at any time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from milp_ray.errors import RunFolderError
from milp_ray.evaluation.metrics import SCORES
from milp_ray.memory.architectures import Architecture
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.placement import Placement
from milp_ray.search.core.events import values_by_user
from milp_ray.storage import atomic_write, reading
from milp_ray.trial.records import TrialCost, TrialTimes

if TYPE_CHECKING:
    from milp_ray.search import Observation
    from milp_ray.search.core.records import Cost
    from milp_ray.search.view import SearchView
    from milp_ray.study.run_folder import RunFolder

_PART_ROWS = 10_000
MODELS = ("base", "shared", "own", "other")
# Columns of what a trial took, and when, with what stands there where it is not known.
_COSTS = {
    one.name: "" if one.type == "str" else float("nan")
    for kind in (TrialCost, TrialTimes)
    for one in fields(kind)
}


def trial_rows(alias: str, engine: SearchView, architecture: Architecture | None) -> list[dict[str, object]]:
    """One row a trial: state, θ, placement, size, values, whether it is on the front, cost.

    The no-memory measurement is the row with trial -1. Values of trials that failed or are pending
    are NaN. So are a cost and times (:class:`milp_ray.trial.records.TrialCost`, ``TrialTimes``)
    that the log does not have: an older log's, or the cost of a trial whose worker was lost.
    Without an architecture the size is left to the values.
    """
    front = {seen.id for seen in engine.front()}
    blank = {objective.name: float("nan") for objective in engine.objectives}
    ended: list[tuple[int, str, MemoryConfig | None, Placement, Mapping[str, float], str, Cost]] = []
    if engine.reference is not None:
        ended.append((-1, "no memory", None, Placement(()), engine.reference, "", engine.reference_cost))
    ended += [(t.id, "done", t.config, t.placement, t.values, "", t.cost) for t in engine.observations]
    ended += [(t.id, "failed", t.config, t.placement, {}, t.reason, t.cost) for t in engine.failures]
    ended += [(t.id, "pending", t.config, t.placement, {}, "", {}) for t in engine.pending]
    return [
        {"user": alias, "trial": number, "state": state}
        | blank
        | dict(values)
        | _theta(config, placement, architecture)  # last: its count of parameters is a whole number
        | {"on_front": number in front, "reason": reason}
        | {name: cost.get(name, unknown) for name, unknown in _COSTS.items()}
        for number, state, config, placement, values, reason, cost in sorted(ended, key=lambda row: row[0])
    ]


def chosen_table(
    chosen: Mapping[str, Observation], policy: str, architecture: Architecture | None
) -> pd.DataFrame:
    """One row a user: the chosen trial, its θ, size and values, and the policy that chose it."""
    return pd.DataFrame(
        [
            {"user": alias, "policy": policy, "trial": seen.id}
            | dict(seen.values)
            | _theta(seen.config, seen.placement, architecture)
            for alias, seen in chosen.items()
        ]
    )


def scores_table(files: Mapping[str, Path]) -> pd.DataFrame:
    """One row a user and model (``MODELS``): loss in nats per token, the rest in [0, 1]."""
    rows: list[dict[str, object]] = []
    for alias, path in files.items():
        if not path.exists():
            continue
        with reading(path):
            found = json.loads(path.read_text(encoding="utf-8"))
            rows.extend(
                {"user": alias, "model": model, "samples": found["samples"], **found["models"][model]}
                for model in MODELS
                if model in found["models"]
            )
    return pd.DataFrame(rows, columns=["user", "model", "samples", *SCORES])


def known_scores(alias: str, path: Path) -> dict[str, dict[str, float]]:
    """A user's scores as far as the score file has them: model (``MODELS``) -> score -> value."""
    return {
        str(row["model"]): {name: float(row[name]) for name in SCORES if row[name] == row[name]}
        for row in scores_table({alias: path}).to_dict("records")
    }


def by_user_rows(log: Path) -> list[dict[str, object]]:
    """One row a trial and user that it measured, of a population's event log: that user's values.

    Trials of a population differ by less than its users do: compare them user by user.
    """
    return [
        {"trial": -1 if number is None else number, "user": alias, **values}
        for number, alias, values in values_by_user(log)
    ]


def hypervolume_rows(alias: str, engine: SearchView) -> list[dict[str, object]]:
    """One row a finished trial: the hypervolume of the front so far, in the objectives' units.

    Measured from a point below the whole front (``lowered``), so that all of the search's progress
    shows.
    """
    return [
        {"user": alias, "finished": count, "hypervolume": value}
        for count, value in enumerate(engine.hypervolume_curve(lowered=True), start=1)
    ]


class TableBuilder:
    """A table that grows row by row, kept in columns: a million dictionaries fill a memory.

    Args:
        columns: of an empty table.
    """

    def __init__(self, *columns: str) -> None:
        self._columns = columns
        self._parts: list[pd.DataFrame] = []
        self._rows: list[dict[str, object]] = []

    def add(self, rows: list[dict[str, object]]) -> None:
        """Append rows."""
        self._rows.extend(rows)
        if len(self._rows) >= _PART_ROWS:
            self._pack()

    def table(self) -> pd.DataFrame:
        """All rows, in the order in which they came."""
        self._pack()
        if not self._parts:
            return pd.DataFrame(columns=list(self._columns))
        return pd.concat(self._parts, ignore_index=True)

    def _pack(self) -> None:
        if self._rows:
            self._parts.append(pd.DataFrame(self._rows))
            self._rows = []


def write_table(table: pd.DataFrame, path: Path) -> None:
    """``<path>.parquet`` and ``<path>.csv``, each written atomically."""
    atomic_write(path.with_suffix(".parquet"), lambda draft: table.to_parquet(draft, index=False))
    atomic_write(path.with_suffix(".csv"), lambda draft: table.to_csv(draft, index=False))


def read_table(path: Path) -> pd.DataFrame:
    """A table that :func:`write_table` wrote."""
    with reading(path):
        return pd.read_parquet(path.with_suffix(".parquet"))


def has_table(folder: RunFolder, name: str) -> bool:
    """Whether a run has this table yet."""
    return Path(f"{folder.layout.table(name)}.parquet").exists()


def search_tables(folder: RunFolder) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trials of a run, and the chosen ones.

    Raises:
        RunFolderError: the run has no tables yet.
    """
    if not has_table(folder, "trials"):
        raise RunFolderError(
            "the run has no tables yet",
            where=folder.location,
            expected="a run that ended or was stopped",
            remedy=f"continue it with: milp-ray resume {folder.location}",
        )
    return read_table(folder.layout.table("trials")), read_table(folder.layout.table("chosen"))


def _theta(
    config: MemoryConfig | None, placement: Placement, architecture: Architecture | None
) -> dict[str, object]:
    size = {} if architecture is None else {"trainable_params": architecture.trainable_params(placement)}
    return {
        "gates": "".join("1" if gate else "0" for gate in config.gates) if config else "",
        "num_loras": config.num_loras if config else 0,
        "rank": config.rank if config else 0,
        **dict(placement.settings),
        "placement": placement.key,
        **size,
    }
