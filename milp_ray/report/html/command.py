"""`milp-ray report`: where the report on a run goes, and that it is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

from milp_ray.errors import RunFolderError
from milp_ray.report.html.model_check import SECONDS, ModelCheck, check_models
from milp_ray.report.html.page import render
from milp_ray.report.html.run_data import RunData, read_run
from milp_ray.report.html.user_table import drawn, user_table
from milp_ray.storage import atomic_write, is_url
from milp_ray.study.run_folder import RunFolder

_OWNER_ALONE = 0o600


def report(
    run: Path | str, out: Path | str | None = None, *, model_check: ModelCheck | float = SECONDS
) -> Path:
    """Write the report on a run as it is now; returns the file.

    Args:
        run: the run folder, or its URL.
        out: the file; None: in the run folder, of a run at a URL in the working directory.
        model_check: seconds after which no further search is fitted; or why none is.

    Raises:
        RunFolderError: there is no run, or no trial of it yet; or ``out`` is a URL.
        StorageError: the run cannot be read, or the file not be written.
    """
    return write_report(run, out, model_check)[0]


def write_report(
    run: Path | str, out: Path | str | None = None, model_check: ModelCheck | float = SECONDS
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
    data = read_run(folder)
    check = model_check
    if not isinstance(check, ModelCheck):
        check = check_models(folder, data, drawn(user_table(data)), check)
    text = render(data, check)
    path = _place(folder, out, at_url=is_url(run))

    def write(draft: Path) -> None:
        draft.touch()
        if path != folder.layout.report:
            draft.chmod(_OWNER_ALONE)  # it is about users: whoever made it decides who else reads
        draft.write_text(text, encoding="utf-8")

    atomic_write(path, write)
    return path, data


def _place(folder: RunFolder, out: Path | str | None, *, at_url: bool) -> Path:
    if out is not None:
        return Path(out).expanduser().absolute()
    return Path.cwd() / f"report-{folder.study.name}.html" if at_url else folder.layout.report
