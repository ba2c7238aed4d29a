"""The tables of Optuna's database, filled in bulk: a thousand studies in half a minute.

Optuna's own way takes a transaction a trial and a query a parameter. Here a batch of studies is one
transaction, with a few statements a table. The schema is Optuna's own matter, so it is read from
the database, and used only if its version is the one known here; else the studies are written by
Optuna's API (:class:`milp_ray.report.optuna_store.ByTrial`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from milp_ray.report.optuna_store import (
    Written,
    check_same,
    directions_of,
    moment,
    shown,
    state_of,
    store_errors,
    values_of,
)
from milp_ray.report.optuna_studies import PLACEMENT, PlainStudy
from milp_ray.trial.records import TrialState

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from sqlalchemy import Connection, Table

    from milp_ray.tracking.records import TrackedTrial

_SCHEMA = 12
_METRIC_NAMES = "study:metric_names"  # system attribute of a study, as Optuna's set_metric_names writes it
_COLUMNS = {
    "studies": {"study_id", "study_name"},
    "study_directions": {"direction", "study_id", "objective"},
    "study_user_attributes": {"study_id", "key", "value_json"},
    "study_system_attributes": {"study_id", "key", "value_json"},
    "trials": {"trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"},
    "trial_user_attributes": {"trial_id", "key", "value_json"},
    "trial_params": {"trial_id", "param_name", "param_value", "distribution_json"},
    "trial_values": {"trial_id", "objective", "value", "value_type"},
}
Row = dict[str, Any]


class Tables:
    """A database with Optuna's schema.

    Args:
        storage: Optuna's own, which has made the tables.
    """

    batch = 50

    def __init__(self, storage: RDBStorage) -> None:
        self._engine, self._place = storage.engine, shown(storage.url)
        with store_errors(self._place):
            self._tables = _reflected(storage)

    @classmethod
    def knows(cls, storage: RDBStorage) -> bool:
        """Whether the database has the schema that is known here."""
        from sqlalchemy import select

        with store_errors(shown(storage.url)):
            tables = _reflected(storage)
            missing = [
                name
                for name, columns in _COLUMNS.items()
                if name not in tables or not columns <= set(tables[name].columns.keys())
            ]
            if missing or "version_info" not in tables:
                return False
            with storage.engine.connect() as connection:
                versions = connection.execute(select(tables["version_info"].c.schema_version)).scalars()
                return list(versions) == [_SCHEMA]

    def write(self, studies: Sequence[PlainStudy], written: Written) -> None:
        """See :class:`~milp_ray.report.optuna_store.Store`; all of these studies, or none."""
        added = Written()
        with store_errors(self._place), self._engine.begin() as connection:
            batch = _Batch(connection, self._tables, studies)
            batch.write(added)
        written.studies += added.studies
        written.trials += added.trials
        written.ended += added.ended


class _Batch:
    """Some studies within one transaction: what is there of them, and what is missing."""

    def __init__(
        self, connection: Connection, tables: Mapping[str, Table], studies: Sequence[PlainStudy]
    ) -> None:
        self._connection, self._tables = connection, tables
        self._studies = {study.name: study for study in studies}
        self._rows: dict[str, list[Row]] = defaultdict(list)

    def write(self, added: Written) -> None:
        ids = self._ids()
        fresh = [name for name in self._studies if name not in ids]
        self._insert("studies", [{"study_name": name} for name in fresh])
        added.studies += len(fresh)
        for name in fresh:
            self._check_new(name)
        before, ids = set(ids), self._ids()
        for name, study_id in ids.items():
            if name not in before:
                self._begin(self._studies[name], study_id)
        attributes = self._attributes(ids)
        there = self._trials(ids)
        for name, study_id in ids.items():
            plain = self._studies[name]
            found = there[study_id]
            if name in before:
                check_same(plain, attributes[study_id], [placement for _, _, placement in found])
            self._renew(plain, study_id, attributes[study_id])
            new = plain.trials[len(found) :]
            added.trials += len(new)
            self._rows["trials"] += [self._trial(trial, study_id) for trial in new]
        self._flush("trials")
        now = self._trials(ids)
        for name, study_id in ids.items():
            plain, count = self._studies[name], len(there[study_id])
            for (trial_id, _, _), trial in list(zip(now[study_id], plain.trials, strict=True))[count:]:
                self._describe(plain, trial, trial_id)
            added.ended += self._end(plain, there[study_id])
        self._flush()

    def _check_new(self, name: str) -> None:
        check_same(self._studies[name], {}, [])

    def _ids(self) -> dict[str, int]:
        from sqlalchemy import select

        table = self._tables["studies"]
        query = select(table.c.study_name, table.c.study_id).where(table.c.study_name.in_(self._studies))
        return {row.study_name: row.study_id for row in self._connection.execute(query)}

    def _attributes(self, ids: Mapping[str, int]) -> dict[int, dict[str, Any]]:
        from sqlalchemy import select

        table = self._tables["study_user_attributes"]
        query = select(table.c.study_id, table.c.key, table.c.value_json).where(
            table.c.study_id.in_(ids.values())
        )
        found: dict[int, dict[str, Any]] = defaultdict(dict)
        for study_id, key, value in self._connection.execute(query):
            found[study_id][key] = json.loads(value)
        return found

    def _trials(self, ids: Mapping[str, int]) -> dict[int, list[tuple[int, str, str]]]:
        """Of each study, its trials by number: id, state, placement."""
        from sqlalchemy import and_, select

        trials, attributes = self._tables["trials"], self._tables["trial_user_attributes"]
        query = (
            select(trials.c.study_id, trials.c.trial_id, trials.c.state, attributes.c.value_json)
            .outerjoin(
                attributes,
                and_(attributes.c.trial_id == trials.c.trial_id, attributes.c.key == PLACEMENT),
            )
            .where(trials.c.study_id.in_(ids.values()))
            .order_by(trials.c.study_id, trials.c.number, trials.c.trial_id)
        )
        found: dict[int, list[tuple[int, str, str]]] = defaultdict(list)
        for study_id, trial_id, state, placement in self._connection.execute(query):
            found[study_id].append((trial_id, str(state), str(json.loads(placement or "null"))))
        return found

    def _begin(self, plain: PlainStudy, study_id: int) -> None:
        names = [objective.name for objective in plain.objectives]
        self._rows["study_directions"] += [
            {"study_id": study_id, "objective": place, "direction": direction.upper()}
            for place, direction in enumerate(directions_of(plain))
        ]
        self._rows["study_system_attributes"].append(
            {"study_id": study_id, "key": _METRIC_NAMES, "value_json": json.dumps(names)}
        )

    def _renew(self, plain: PlainStudy, study_id: int, there: Mapping[str, Any]) -> None:
        """The study's attributes, as they are now."""
        table = self._tables["study_user_attributes"]
        changed = {name: value for name, value in plain.attributes.items() if there.get(name) != value}
        if old := [name for name in changed if name in there]:
            self._connection.execute(table.delete().where(table.c.study_id == study_id, table.c.key.in_(old)))
        self._rows["study_user_attributes"] += [
            {"study_id": study_id, "key": name, "value_json": json.dumps(value)}
            for name, value in changed.items()
        ]

    @staticmethod
    def _trial(trial: TrackedTrial, study_id: int) -> Row:
        return {
            "study_id": study_id,
            "number": trial.number,
            "state": state_of(trial).name,
            "datetime_start": moment(trial.began),
            "datetime_complete": None if trial.ended is None else moment(trial.ended),
        }

    def _describe(self, plain: PlainStudy, trial: TrackedTrial, trial_id: int) -> None:
        """A new trial's parameters, attributes and values."""
        from optuna.distributions import distribution_to_json

        self._rows["trial_params"] += [
            {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": plain.distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(plain.distributions[name]),
            }
            for name, value in trial.parameters.items()
        ]
        self._measure(plain, trial, trial_id)

    def _measure(self, plain: PlainStudy, trial: TrackedTrial, trial_id: int) -> None:
        self._rows["trial_user_attributes"] += [
            {"trial_id": trial_id, "key": name, "value_json": json.dumps(value)}
            for name, value in plain.attributes_of(trial).items()
        ]
        self._rows["trial_values"] += [
            {"trial_id": trial_id, "objective": place, "value": value, "value_type": "FINITE"}
            for place, value in enumerate(values_of(plain, trial) or [])
        ]

    def _end(self, plain: PlainStudy, there: Sequence[tuple[int, str, str]]) -> int:
        """End the trials that ran when the store was written last; returns how many."""
        table, told = self._tables["trials"], self._tables["trial_user_attributes"]
        count = 0
        for (trial_id, state, _), trial in zip(there, plain.trials, strict=False):
            if "RUNNING" in state and trial.state is not TrialState.RUNNING:
                row = self._trial(trial, 0)
                del row["study_id"]
                self._connection.execute(table.update().where(table.c.trial_id == trial_id).values(row))
                self._connection.execute(told.delete().where(told.c.trial_id == trial_id))
                self._measure(plain, trial, trial_id)
                count += 1
        return count

    def _flush(self, *names: str) -> None:
        for name in names or _COLUMNS:
            self._insert(name, self._rows.pop(name, []))

    def _insert(self, name: str, rows: list[Row]) -> None:
        if rows:
            self._connection.execute(self._tables[name].insert(), rows)


def _reflected(storage: RDBStorage) -> Mapping[str, Table]:
    from sqlalchemy import MetaData

    metadata = MetaData()
    metadata.reflect(bind=storage.engine, only=lambda name, _: name in {*_COLUMNS, "version_info"})
    return metadata.tables
