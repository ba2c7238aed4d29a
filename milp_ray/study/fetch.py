"""`milp-ray fetch`: what people look at of a run, copied to a folder of this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from milp_ray.errors import RunFolderError
from milp_ray.layout import ADAPTER_CONFIG, MEMORIES, PLOTS, REPORT, TABLES
from milp_ray.memory.adapter_files import WEIGHTS
from milp_ray.memory.adapter_notes import NOTE, check_content
from milp_ray.memory.export import copy_adapter
from milp_ray.storage import OWNER, local_copy, names_in, reading, write_folder
from milp_ray.study.run_folder import RunFolder

_DRAFTS = ".*"  # of processes that were killed


def fetch(run: Path | str, target: Path, *, memories: bool = False, one_rank: bool = False) -> int:
    """Copy the tables and plots of a run, and its report where there is one, or nothing.

    Returns the number of files.

    Memories name their base model without its folder on the machine that trained them.

    Args:
        run: the run folder, or its URL.
        target: a folder that is not there yet, or is empty.
        memories: the users' adapters as well.
        one_rank: these with one rank each, lesser ones filled up with zeros
            (:mod:`milp_ray.memory.export`).

    Raises:
        RunFolderError: there is no run, it has no tables yet, something is at ``target``, or an
            adapter is not the one that it says it is.
        StorageError: the run or a memory cannot be read, or the folder not be written.
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
    kinds = [TABLES, PLOTS, REPORT]
    if not names_in(folder.root / TABLES):
        raise RunFolderError(
            "the run has no tables yet",
            where=folder.location,
            expected="a run that ended or was stopped",
            remedy=f"continue it with: milp-ray resume {folder.location}",
        )
    if memories:
        # One after the other: a population's adapters need room for one copy only.
        kinds += [
            f"{MEMORIES}/{alias}" for alias in sorted(names_in(folder.root / MEMORIES)) if alias[0] != "."
        ]

    def write(draft: Path) -> None:
        draft.chmod(OWNER)  # memories and tables are about users: whoever fetched them decides who else reads
        for kind in kinds:
            with local_copy(folder.root / kind) as copy:
                if kind == REPORT and copy.is_file():
                    shutil.copyfile(copy, draft / kind)
                elif copy.is_dir():
                    if kind.startswith(f"{MEMORIES}/"):
                        _copy_memory(copy, draft / kind, one_rank)
                    else:
                        shutil.copytree(copy, draft / kind, ignore=shutil.ignore_patterns(_DRAFTS))

    write_folder(target, write)
    return sum(path.is_file() for path in target.rglob("*"))


def _copy_memory(source: Path, target: Path, one_rank: bool) -> None:
    """A memory under its alias, if it is there whole; its configuration comes last."""
    if not (source / ADAPTER_CONFIG).exists():
        return
    with reading(source):
        check_content(source, user=target.name)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(_DRAFTS, ADAPTER_CONFIG, WEIGHTS, NOTE))
    copy_adapter(source, target, one_rank=one_rank)
