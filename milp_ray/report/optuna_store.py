"""Stores of Optuna studies, written through Optuna's own API: a JournalFile, or a database.

A study that is there already gets the trials that it lacks, and those ended that were running; what
it has stays as it is. The tables of a database are filled in bulk where its schema is the one known
here (:mod:`milp_ray.report.optuna_tables`).
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from milp_ray.errors import InstallError, Problem, RunFolderError, StorageError, own_words
from milp_ray.report.optuna_studies import PLACEMENT, RUN, PlainStudy
from milp_ray.trial.records import TrialState

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage, RDBStorage
    from optuna.trial import FrozenTrial

    from milp_ray.tracking.records import TrackedTrial

_SQLITE = b"SQLite format 3\0"


@dataclass
class Written:
    """What an export added to a store: studies that are new, new trials, trials that ended."""

    studies: int = 0
    trials: int = 0
    ended: int = 0


class Store(Protocol):
    """Takes studies, some at a time; after an interruption the rest can follow."""

    batch: int

    def write(self, studies: Sequence[PlainStudy], written: Written) -> None:
        """Add what is missing of these studies.

        Raises:
            RunFolderError: a study of this name is another run's, or holds others' trials.
            StorageError: the store cannot be written.
        """
        ...


def open_store(text: str) -> Store:
    """The store that a URL of a database names, or the path of a JournalFile.

    Raises:
        InstallError: the database's driver is missing.
        RunFolderError: there is a file of another kind.
        StorageError: the store cannot be reached.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if "://" in text:
        from milp_ray.report.optuna_tables import Tables

        storage = _database(text)
        return Tables(storage) if Tables.knows(storage) else ByTrial(storage, shown(text))
    return ByTrial(_journal(Path(text).expanduser()), text)


def shown(text: str) -> str:
    """A store for people: without the password of its URL."""
    if "://" not in text:
        return text
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(text).render_as_string(hide_password=True)
    except ArgumentError:
        return text.partition("://")[0] + "://…"


class ByTrial:
    """A store that is written trial by trial, by Optuna's public API alone.

    Args:
        storage: any of Optuna's.
        place: for people.
    """

    batch = 1

    def __init__(self, storage: BaseStorage, place: str) -> None:
        self._storage, self._place = storage, place
        with store_errors(place):
            self._names = {study.study_name for study in storage.get_all_studies()}

    def write(self, studies: Sequence[PlainStudy], written: Written) -> None:
        """See :class:`Store`."""
        for plain in studies:
            with store_errors(self._place):
                study = self._load(plain) if plain.name in self._names else self._create(plain)
                written.studies += plain.name not in self._names
                there, attributes = study.get_trials(deepcopy=False), study.user_attrs
                check_same(plain, attributes, [str(one.user_attrs.get(PLACEMENT)) for one in there])
                self._add(plain, study, there, written)
                for name, value in plain.attributes.items():
                    if attributes.get(name) != value:
                        study.set_user_attr(name, value)

    def _load(self, plain: PlainStudy) -> Study:
        import optuna

        return optuna.load_study(study_name=plain.name, storage=self._storage)

    def _create(self, plain: PlainStudy) -> Study:
        import optuna

        study = optuna.create_study(
            storage=self._storage, study_name=plain.name, directions=directions_of(plain)
        )
        study.set_user_attr(RUN, plain.attributes[RUN])  # first: trials that follow are ours
        with warnings.catch_warnings(category=optuna.exceptions.ExperimentalWarning, action="ignore"):
            study.set_metric_names([objective.name for objective in plain.objectives])
        return study

    def _add(self, plain: PlainStudy, study: Study, there: list[FrozenTrial], written: Written) -> None:
        for trial in plain.trials[len(there) :]:
            study.add_trial(frozen(plain, trial))
            written.trials += 1
        for found, trial in zip(there, plain.trials, strict=False):
            if not found.state.is_finished() and trial.state is not TrialState.RUNNING:
                study_id = self._storage.get_study_id_from_name(plain.name)
                trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
                for name, value in plain.attributes_of(trial).items():
                    self._storage.set_trial_user_attr(trial_id, name, value)
                self._storage.set_trial_state_values(trial_id, state_of(trial), values_of(plain, trial))
                written.ended += 1


def directions_of(plain: PlainStudy) -> list[Literal["minimize", "maximize"]]:
    """What Optuna calls an objective's direction."""
    return ["minimize" if one.direction == "min" else "maximize" for one in plain.objectives]


def values_of(plain: PlainStudy, trial: TrackedTrial) -> list[float] | None:
    """A trial's values in the order of the objectives; None where it has none."""
    return [float(trial.values[one.name]) for one in plain.objectives] if trial.values else None


def state_of(trial: TrackedTrial) -> Any:
    """Optuna's state of a trial."""
    from optuna.trial import TrialState as Theirs

    known = {TrialState.COMPLETE: Theirs.COMPLETE, TrialState.FAILED: Theirs.FAIL}
    return known.get(trial.state, Theirs.RUNNING)


def moment(seconds: float) -> datetime:
    """A time as databases keep it: in UTC, and without saying so."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def frozen(plain: PlainStudy, trial: TrackedTrial) -> FrozenTrial:
    """A trial as Optuna's own, with times in this machine's zone, as Optuna has them."""
    from optuna.trial import create_trial

    made = create_trial(
        state=state_of(trial),
        values=values_of(plain, trial),
        params=dict(trial.parameters),
        distributions=dict(plain.distributions),
        user_attrs=plain.attributes_of(trial),
    )
    made.datetime_start = datetime.fromtimestamp(trial.began)
    made.datetime_complete = None if trial.ended is None else datetime.fromtimestamp(trial.ended)
    return made


def check_same(plain: PlainStudy, attributes: dict[str, Any], placements: Sequence[str]) -> None:
    """Make sure that a study in the store is this run's, and that its trials are ours.

    Args:
        plain: the study that is to be written.
        attributes: of the one that is there.
        placements: of its trials, by number.

    Raises:
        RunFolderError: they are not.
    """
    if (attributes or placements) and attributes.get(RUN) != plain.attributes[RUN]:
        raise RunFolderError(
            "the store has a study of this name that is of another run",
            where=plain.name,
            expected="no such study, or an earlier export of the same run",
            remedy="export into another store, or delete the study there",
        )
    ours = [trial.placement for trial in plain.trials[: len(placements)]]
    if ours != list(placements):
        raise RunFolderError(
            "the store's study has trials that are not the run's",
            where=plain.name,
            expected="what an earlier export wrote, and nothing else",
            remedy="export into another store; go on with a search in a copy of the study",
        )


@contextlib.contextmanager
def store_errors(place: str) -> Iterator[None]:
    """Turn what Optuna and a database raise into errors of ours.

    Raises:
        StorageError: in their words.
    """
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (OptunaError, SQLAlchemyError, OSError) as error:
        cause = getattr(error, "orig", None) or error.__cause__ or error
        raise StorageError(
            f"the store cannot be reached, or not be written: {own_words(getattr(cause, 'orig', cause))}",
            where=place,
            expected="a store that is up, and into which you may write",
            remedy="see to it, and export again: what is there is not written twice",
        ) from error


def check_installed() -> None:
    """Make sure that Optuna is there.

    Raises:
        InstallError: it is not.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise InstallError(
            "an export to Optuna",
            [Problem("optuna", "is not installed", "the extra optuna", 'pip install "milp_ray[optuna]"')],
        ) from error


def _database(url: str) -> RDBStorage:
    import optuna

    try:
        with store_errors(shown(url)):
            return optuna.storages.RDBStorage(url)
    except ImportError as error:
        raise InstallError(
            "an export to Optuna",
            [
                Problem(
                    shown(url),
                    f"the database's driver is not installed ({_driver(error)})",
                    "the package that SQLAlchemy opens such a URL with",
                    'for PostgreSQL: pip install "psycopg[binary]", and postgresql+psycopg://user@host/name',
                )
            ],
        ) from error


def _driver(error: ImportError) -> str:
    cause = error.__cause__
    return str(cause.name if isinstance(cause, ImportError) and cause.name else error.name or "no name")


def _journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with store_errors(str(path)):
        _check_journal(path)
        return JournalStorage(JournalFileBackend(str(path)))


def _check_journal(path: Path) -> None:
    if not path.exists():
        if not path.parent.is_dir():
            raise FileNotFoundError(2, "no such folder", str(path.parent))
        return
    with path.open("rb") as file:
        first = file.readline(1 << 20)
    with contextlib.suppress(ValueError):
        if not first or "op_code" in json.loads(first):
            return
    is_sqlite = first.startswith(_SQLITE[:15])
    raise RunFolderError(
        "there is a file of another kind" + (", an SQLite database" if is_sqlite else ""),
        where=str(path),
        expected="a JournalFile of Optuna, or a free name",
        remedy=f"name a database by its URL: sqlite:///{path}" if is_sqlite else "name another file",
    )
