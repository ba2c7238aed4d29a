"""`milp-ray fetch`: what people look at of a run, copied to a folder of this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from milp_ray.errors import RunFolderError
from milp_ray.memory.adapter_notes import check_content
from milp_ray.storage import OWNER, at_hand, names_in, reading, write_folder
from milp_ray.study.run_folder import RunFolder


def fetch(run: Path | str, target: Path, *, memories: bool = False) -> int:
    """Copy the tables and plots of a run, all of them or nothing; the number of files.

    Args:
        run: the run folder, or its URL.
        target: a folder that is not there yet, or is empty.
        memories: the users' adapters as well.

    Raises:
        RunFolderError: there is no run, it has no tables yet, something is at ``target``, or an adapter is
            not the one that it says it is.
        StorageError: the run cannot be read, or the folder not be written.
    """
    folder = RunFolder.open(run)
    target = target.expanduser().absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise RunFolderError(
            "there is something already where the copies should go",
            where=str(target),
            expected="a folder that is not there yet, or is empty",
            remedy="name another folder, or remove this one",
        )
    kinds = ["tables", "plots"]
    if not names_in(folder.root / "tables"):
        raise RunFolderError(
            "the run has no tables yet",
            where=folder.place,
            expected="a run that ended or was stopped",
            remedy=f"continue it with: milp-ray resume {folder.place}",
        )
    if memories:
        # One after the other: a population's adapters need room for one copy only.
        kinds += [
            f"memories/{alias}" for alias in sorted(names_in(folder.root / "memories")) if alias[0] != "."
        ]

    def write(draft: Path) -> None:
        draft.chmod(OWNER)  # memories and tables are about users: whoever fetched them decides who else reads
        for kind in kinds:
            with at_hand(folder.root / kind) as copy:
                if copy.is_dir():
                    if kind.startswith("memories/"):
                        with reading(copy):
                            check_content(copy, user=copy.name)
                    # Hidden: drafts of processes that were killed.
                    shutil.copytree(copy, draft / kind, ignore=shutil.ignore_patterns(".*"))

    write_folder(target, write)
    return sum(path.is_file() for path in target.rglob("*"))
