"""`milp-ray report`, and a job's: where it goes, and that it is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

from milp_ray.errors import MilpRayError, RunFolderError, exception_site
from milp_ray.report.html.cases import read_cases
from milp_ray.report.html.model_check import SECONDS, ModelCheck, check_models
from milp_ray.report.html.page import render
from milp_ray.report.html.run_data import RunData, read_run
from milp_ray.report.html.user_table import drawn, user_table
from milp_ray.storage import atomic_write, is_url, location_of
from milp_ray.study.run_folder import RunFolder

_OWNER_ALONE = 0o600


def report(
    run: Path | str,
    out: Path | str | None = None,
    *,
    model_check: ModelCheck | float = SECONDS,
    include_text: bool = False,
) -> Path:
    """Write the report on a run as it is now; returns the file.

    Args:
        run: the run folder, or its URL.
        out: the file; None: in the run folder, of a run at a URL in the working directory.
        model_check: seconds after which no further search is fitted; or why none is.
        include_text: with samples and ids of users, which :mod:`milp_ray.report.html.cases` reads.
            Such a report goes to the working directory, or to ``out``, and never into the run.

    Raises:
        RunFolderError: there is no run, or no trial of it yet; or ``out`` is a URL, or in the run
            though texts are to be in it.
        DataError: with ``include_text``: the data is not there, or is other data than before.
        StorageError: the run cannot be read, or the file not be written.
    """
    return write_report(run, out, model_check, include_text=include_text)[0]


def write_report(
    run: Path | str,
    out: Path | str | None = None,
    model_check: ModelCheck | float = SECONDS,
    *,
    include_text: bool = False,
) -> tuple[Path, RunData]:
    """:func:`report`, and what it was made from."""
    if out is not None and is_url(out):
        raise RunFolderError(
            "a report is written to a file of this machine",
            where=str(out),
            expected="a path",
            remedy="name a path, and copy the file to the URL",
        )
    folder = RunFolder.open(run)
    path = _place(folder, out, at_url=is_url(run), include_text=include_text)
    return path, _write(folder, path, model_check, include_text=include_text)


def report_of_job(folder: RunFolder) -> str:
    """Write the report into the run of a job whose driver has ended, also at a URL.

    Returns a line that says where it is, or why there is none: a report ends no job.
    """
    try:
        _write(folder, folder.layout.report, SECONDS)
    except Exception as error:  # whatever it is, the study is done
        told = isinstance(error, MilpRayError)
        reason = error.problems[0].fact if told else exception_site(error)  # type: ignore[attr-defined]
        return f"note: no report was written ({reason}); for one: milp-ray report {folder.location}"
    return f"report: {location_of(folder.layout.report)}"


def _write(
    folder: RunFolder, path: Path, model_check: ModelCheck | float, *, include_text: bool = False
) -> RunData:
    data = read_run(folder)
    picked = drawn(user_table(data))
    cases = read_cases(folder, picked) if include_text else None
    check = model_check
    if not isinstance(check, ModelCheck):
        check = check_models(folder, data, picked, check)
    text = render(data, check, cases)

    def write(draft: Path) -> None:
        draft.touch()
        if path != folder.layout.report:
            draft.chmod(_OWNER_ALONE)  # it is about users: whoever made it decides who else reads
        draft.write_text(text, encoding="utf-8")

    atomic_write(path, write)
    return data


def _place(folder: RunFolder, out: Path | str | None, *, at_url: bool, include_text: bool) -> Path:
    if out is None and include_text:
        return Path.cwd() / f"report-{folder.study.name}-with-text.html"
    if out is not None:
        path = Path(out).expanduser().absolute()
        if include_text and path.resolve().is_relative_to(Path(folder.root).resolve()):
            raise RunFolderError(
                "a report with users' texts does not go into the run folder",
                where=str(path),
                expected="a file elsewhere: whoever may read the run would read the texts, too",
                remedy="name another file, or leave --out away",
            )
        return path
    return Path.cwd() / f"report-{folder.study.name}.html" if at_url else folder.layout.report
