"""The entry points of jobs: a study file and overrides in, an exit code out.

A job is one driver process on a node of the cluster. It resumes what an earlier job of the same
study began, so submitting again is how to go on after a stop, a pre-emption or a failure. The
scripts in ``jobs/`` call these functions; without them the same is ``python -m milp_ray.jobs search
study.yaml``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from milp_ray.config.comparison import Comparison
from milp_ray.config.loading import check_no_ids, load_comparison, load_study
from milp_ray.config.models import Study
from milp_ray.errors import StudyError
from milp_ray.jobs.package import BUILT_IN, IDS_TRAVEL, storage_problem
from milp_ray.storage import is_url
from milp_ray.terminal import err, leave, out, print_outcome, reported
from milp_ray.tune.cluster.import_path import forget

if TYPE_CHECKING:
    from rich.console import Console

    from milp_ray.study.run import Outcome


# Ray unpacks the folder that travels with a job into one of this name, and deletes it some time
# after.
_PACKAGE = "_ray_pkg_"


def search(words: Sequence[str] | None = None) -> NoReturn:
    """Search every user's memory; with ``final.automatic`` train and test the chosen ones.

    Args:
        words: a study file, then ``section.key=value`` overrides; None: those of the command line.
    """

    def work(study: Study, console: Console) -> int:
        from milp_ray.study.driver import start_or_resume  # imports torch: a faulty file is told before

        return _ended(start_or_resume(study, console))

    _run(work, load_study, words)


def final(words: Sequence[str] | None = None) -> NoReturn:
    """Train and test the chosen memories of users whose search is over; see :func:`search`."""

    def work(study: Study, console: Console) -> int:
        from milp_ray.study.driver import final_of  # as above

        return _ended(final_of(study, console))

    _run(work, load_study, words)


def compare(words: Sequence[str] | None = None) -> NoReturn:
    """Compare methods on the same users, cell by cell: `milp-ray compare` as a job.

    Args:
        words: a comparison file, then ``section.key=value`` overrides; None: those of the command
            line.
    """

    def work(comparison: Comparison, console: Console) -> int:
        from milp_ray.comparison.command import compare_and_report  # as above

        return compare_and_report(comparison, console)

    _run(work, load_comparison, words)


JOBS: dict[str, Callable[[Sequence[str]], NoReturn]] = dict(
    zip(BUILT_IN, (search, final, compare), strict=True)
)
File = TypeVar("File", Study, Comparison)


def _run(
    work: Callable[[File, Console], int],
    load: Callable[[str, Sequence[str]], File],
    words: Sequence[str] | None,
) -> NoReturn:
    words = sys.argv[1:] if words is None else words
    if Path(sys.path[0] or os.curdir).resolve() != Path.cwd():
        forget(os.curdir)  # the folder that travels with the job is no script's: see import_path
    if not words or words[0] in ("-h", "--help") or words[0].startswith("-"):
        name = Path(sys.argv[0]).name
        name = f"python -m milp_ray.jobs {sys.argv[1]}" if name == "__main__.py" else name
        err.print(f"usage: {name} FILE [section.key=value ...]", markup=False)
        leave(0 if words and words[0] in ("-h", "--help") else 2)

    @reported
    def job() -> int:
        check_no_ids(words[1:])
        loaded = load(words[0], words[1:])
        check_paths(loaded, Path.cwd())
        named = any(isinstance(data.users, tuple) for data in loaded.data_sections.values())
        if named and _package_of(Path.cwd()):
            err.print(IDS_TRAVEL, markup=False)
        return work(loaded, out)

    leave(job())


def _ended(outcome: Outcome) -> int:
    """Print how a run ended, and write its report, unless it was stopped: a stop does not wait."""
    code = print_outcome(outcome)
    if not outcome.interrupted:
        from milp_ray.report.html.command import report_of_job

        out.print(report_of_job(outcome.folder), markup=False, soft_wrap=True)
    return code


def check_paths(study: Study | Comparison, folder: Path) -> None:
    """Refuse to write a run into the folder that travelled with the job.

    Args:
        study: or comparison, as loaded.
        folder: that the job runs in.

    Raises:
        StudyError: ``storage.path`` is inside.
    """
    package = _package_of(folder)
    path = study.storage.path
    if package is None or is_url(path):
        return
    if (folder / Path(path).expanduser()).resolve().is_relative_to(package.resolve()):
        raise StudyError("the study of a job", [storage_problem(path)])


def _package_of(folder: Path) -> Path | None:
    """The folder that travelled with a job and holds ``folder``; None if it did not travel."""
    return next((part for part in (folder, *folder.parents) if part.name.startswith(_PACKAGE)), None)
