"""What a report is made from: a run's tables, and its event logs where these are further.

Nothing of the run is changed or locked, so a run may be read while its driver writes. What it comes
to for each user is :mod:`milp_ray.report.html.user_table`'s.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from milp_ray.config.models import Study
from milp_ray.config.objectives import OBJECTIVES
from milp_ray.errors import MilpRayError, RunFolderError
from milp_ray.ids import POPULATION, is_alias
from milp_ray.layout import EVENTS
from milp_ray.layout import SCORES as SCORES_FOLDER
from milp_ray.report.html.searches import LogFacts, facts_of
from milp_ray.search.core.events import events_so_far
from milp_ray.search.replay import placements_in, search_of
from milp_ray.storage import FileSet, mirror_of, names_in
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.run_lock import is_held
from milp_ray.study.selection import select_from_log
from milp_ray.study.tables import (
    by_user_rows,
    chosen_table,
    hypervolume_rows,
    read_table,
    scores_table,
    trial_rows,
)

STAGES = ("inject_seconds", "instruct_seconds", "eval_seconds")
_COSTS = (*STAGES, "train_tokens", "gpu_memory", "attempts", "started_at", "ended_at", "lost_seconds")
_TEXTS = ("reason", "node", "worker", "placement", "gates", "policy")
_COLUMNS = {
    "trials": (
        "user", "trial", "state", *OBJECTIVES, "gates", "num_loras", "rank", "placement", "trainable_params",
        "on_front", "reason", *_COSTS, "node", "worker",
    ),
    "chosen": ("user", "policy", "trial", *OBJECTIVES, "placement", "trainable_params"),
    "scores": ("user", "model", "samples", "loss"),
    "hypervolume": ("user", "finished", "hypervolume"),
    "by_user": ("trial", "user", *OBJECTIVES),
}  # fmt: skip
_LIVE = FileSet(folders={EVENTS: "*.jsonl", SCORES_FOLDER: "*.json"})


@dataclass(frozen=True)
class RunData:
    """A run as it is now.

    Attributes:
        name, location, study, meta: of the run folder.
        aliases: of all users that the run began with, as far as it says; those of the tables too.
        trials, chosen, scores, hypervolume, by_user: as in ``tables/``, all columns there.
        held: whether a driver holds the run, or did so when it was killed.
        from_logs: searches whose rows come from the event logs, which were further than the tables.
        logs: facts of each log, by alias.
        unreadable: logs that could not be read, with the reason.
        placements: how many the space has; None: too many to be used up.
    """

    name: str
    location: str
    study: Study
    meta: Mapping[str, object]
    aliases: tuple[str, ...]
    trials: pd.DataFrame
    chosen: pd.DataFrame
    scores: pd.DataFrame
    hypervolume: pd.DataFrame
    by_user: pd.DataFrame
    held: bool = False
    from_logs: int = 0
    logs: Mapping[str, LogFacts] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    placements: int | None = None

    @property
    def measured(self) -> list[str]:
        """Objectives that trials measure, in the study's order."""
        return [name for name in self.study.objectives if not OBJECTIVES[name].exact]

    @property
    def is_population(self) -> bool:
        """Whether one placement was searched for everybody."""
        return self.study.unit == "population"


def read_run(folder: RunFolder) -> RunData:
    """A run's tables, brought up to what its event logs and score files have now.

    Raises:
        RunFolderError: no trial has been asked for yet.
        StorageError: the run cannot be read.
    """
    if (mirror := mirror_of(folder.root)) is not None:
        mirror.refresh(_LIVE)
    tables = {name: _table(folder, name) for name in _COLUMNS}
    fresh = _Fresh(folder)
    tables = fresh.merged(tables)
    if tables["trials"].empty:
        raise RunFolderError(
            "the run has no tables yet, and no trial in its event logs",
            where=folder.location,
            expected="a run that has begun its first trials, ended or was stopped",
            remedy=f"let it go on, or continue it with: milp-ray resume {folder.location}",
        )
    return RunData(
        folder.study.name,
        folder.location,
        folder.study,
        folder.meta,
        _aliases(folder, tables),
        tables["trials"],
        tables["chosen"],
        tables["scores"],
        tables["hypervolume"],
        tables["by_user"],
        is_held(folder.root),
        len(fresh.searches),
        fresh.facts,
        fresh.unreadable,
        placements_in(fresh.first) if fresh.first is not None else None,
    )


def _aliases(folder: RunFolder, tables: Mapping[str, pd.DataFrame]) -> tuple[str, ...]:
    begun = folder.fingerprint if isinstance(folder.fingerprint, Mapping) else ()
    named = {str(user) for name in ("trials", "scores", "by_user") for user in tables[name]["user"].unique()}
    return tuple(sorted({alias for alias in begun if is_alias(alias)} | named - {POPULATION}))


def _table(folder: RunFolder, name: str) -> pd.DataFrame:
    path = folder.layout.table(name)
    if Path(f"{path}.parquet").exists():
        return _with_columns(name, read_table(path))
    return _with_columns(name, pd.DataFrame())


def _with_columns(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """A table with every column that the report asks for: earlier versions lack some."""
    missing = {column: pd.Series(dtype=object) for column in _COLUMNS[name] if column not in table.columns}
    table = table.assign(**missing)
    for column in {*OBJECTIVES, *_COSTS, "trainable_params", "loss"} & {*table.columns}:
        table[column] = pd.to_numeric(table[column], errors="coerce")
    for column in {*_TEXTS} & {*table.columns}:
        table[column] = table[column].fillna("").astype(str)
    if "on_front" in table.columns:
        table["on_front"] = table["on_front"].fillna(value=False).astype(bool)
    return table


class _Fresh:
    """What the event logs and score files have that the tables do not.

    Attributes:
        facts, unreadable: see :class:`RunData`.
        searches: logs with more ended or asked trials than the tables have, with their events.
        first: any log; None without any.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.facts: dict[str, LogFacts] = {}
        self.unreadable: dict[str, str] = {}
        self.searches: list[str] = []
        names = sorted(names_in(folder.root / EVENTS))
        self._aliases = [name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl")]
        self._aliases = [alias for alias in self._aliases if is_alias(alias) or alias == POPULATION]
        self.first = folder.layout.events(self._aliases[0]) if self._aliases else None

    def merged(self, tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
        """The tables, with the rows of searches that went on replaced."""
        known = _ended(tables["trials"])
        rows: dict[str, list[dict[str, object]]] = {"trials": [], "hypervolume": [], "by_user": []}
        chosen: list[pd.DataFrame] = []
        for alias in self._aliases:
            with self._tolerated(alias):
                log = self._folder.layout.events(alias)
                events = events_so_far(log)
                self.facts[alias] = facts_of(events)
                if self.facts[alias].ended <= known.get(alias, -1):
                    continue
                view = search_of(events, log)
                if view is None or not (found := trial_rows(alias, view, None)):
                    continue
                rows["trials"] += found
                rows["hypervolume"] += hypervolume_rows(alias, view)
                rows["by_user"] += by_user_rows(log)
                self.searches.append(alias)
                settings = self._folder.study.choose
                if (seen := select_from_log(view, settings)) is not None:
                    chosen.append(chosen_table({alias: seen}, settings.policy, None))
        replaced = set(self.searches)
        result = {
            name: _with_columns(name, _joined(tables[name], replaced, [pd.DataFrame(found)]))
            for name, found in rows.items()
        }
        result["chosen"] = _with_columns("chosen", _joined(tables["chosen"], replaced, chosen))
        result["scores"] = self._scores(tables["scores"])
        return result

    def _scores(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table, or what the score files have where these are more."""
        names = names_in(self._folder.root / SCORES_FOLDER)
        aliases = sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))
        aliases = [alias for alias in aliases if is_alias(alias)]
        if set(aliases) <= set(table.user):
            return table
        try:
            files = {alias: self._folder.layout.scores(alias) for alias in aliases}
            return _with_columns("scores", scores_table(files))
        except (MilpRayError, KeyError, TypeError, ValueError) as error:
            self.unreadable["scores"] = type(error).__name__
            return table

    @contextlib.contextmanager
    def _tolerated(self, alias: str) -> Iterator[None]:
        """Name a log that cannot be read in the report, and go on with the others."""
        try:
            yield
        except MilpRayError as error:
            self.unreadable[alias] = error.problems[0].fact


def _ended(trials: pd.DataFrame) -> Counter[str]:
    """How many trials of each user ended, by the table."""
    rows = trials[trials.state.isin(["done", "failed"])]
    return Counter({str(alias): int(count) for alias, count in rows.user.value_counts().items()})


def _joined(table: pd.DataFrame, replaced: set[str], parts: list[pd.DataFrame]) -> pd.DataFrame:
    """A table without the rows of some users, and with new ones."""
    kept = table[~table.user.isin(replaced)] if replaced else table
    parts = [part for part in (kept, *parts) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else table
