"""`milp-ray export-study RUN --optuna STORE`: a run's searches as studies that Optuna opens.

A second export into the same store adds what is new. Nothing of the run is changed or locked, so a
run that goes on is exported as far as it is. What a study holds says
:mod:`milp_ray.report.optuna_studies`, how stores are written :mod:`milp_ray.report.optuna_store`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from milp_ray.errors import RunFolderError
from milp_ray.layout import EVENTS, LEASES, SCORES
from milp_ray.report.optuna_store import Written, check_installed, open_store, shown
from milp_ray.report.optuna_studies import PlainStudy, plain_studies, searched
from milp_ray.storage import FileSet, mirror_of
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.run_lock import is_held

_FILES = FileSet(folders={EVENTS: "*.jsonl", SCORES: "*.json", LEASES: "*"})


@dataclass(frozen=True)
class Exported:
    """What became of an export.

    Attributes:
        store: where to, without a password.
        studies, trials: of the run that the store has now.
        written: what of it is new.
        unreadable: aliases whose event logs are damaged, and which are left out.
        held: whether a driver held the run, so that there may be more soon.
    """

    store: str
    studies: int
    trials: int
    written: Written
    unreadable: tuple[str, ...]
    held: bool

    def lines(self) -> list[str]:
        """What people are told."""
        new = self.written
        found = [
            f"{self.studies:,} studies with {self.trials:,} trials: {self.store}",
            f"new: {new.studies:,} studies, {new.trials:,} trials; "
            f"{new.ended:,} trials have ended since the last export",
        ]
        if self.unreadable:
            few = ", ".join(self.unreadable[:5])
            found.append(f"left out, as their event logs cannot be read: {len(self.unreadable)} ({few})")
        if self.held:
            found.append("a driver holds the run: this is what is there so far; export again to add the rest")
        return found


def export_study(
    run: Path | str, store: str, notify: Callable[[str], object] = lambda text: None
) -> Exported:
    """Write every search of a run into a store of Optuna studies.

    Args:
        run: the run folder, or its URL.
        store: the URL of a database, such as ``sqlite:///x.db``, or the path of a JournalFile.
        notify: is told how far it is.

    Raises:
        RunFolderError: there is no run, or no trial of it yet; or the store has a study of the same
            name that is another run's.
        InstallError: Optuna, or the database's driver, is missing.
        StorageError: the run cannot be read, or the store not be reached.
    """
    folder = RunFolder.open(run)
    if (mirror := mirror_of(folder.root)) is not None:
        mirror.refresh(_FILES)
    aliases = searched(folder)
    check_installed()
    unreadable: list[str] = []
    found: Iterator[PlainStudy] = plain_studies(folder, unreadable)
    if (first := next(found, None)) is None:  # before a store is made
        raise RunFolderError(
            "the run has no trial yet that could be exported",
            where=folder.location,
            expected="a run that has begun its first trials, ended or was stopped",
            remedy=f"let it go on, or continue it with: milp-ray resume {folder.location}",
        )
    found, opened = chain([first], found), open_store(store)
    written, studies, trials = Written(), 0, 0
    while batch := list(islice(found, opened.batch)):
        opened.write(batch, written)
        before, studies = studies, studies + len(batch)
        trials += sum(len(study.trials) for study in batch)
        if studies // 100 > before // 100:
            notify(f"{studies:,} of {len(aliases):,} studies")
    return Exported(shown(store), studies, trials, written, tuple(unreadable), is_held(folder.root))
