"""A job ends with its report in the run, and as its study did whatever becomes of the report."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from milp_ray.jobs import entry
from milp_ray.report.html import command
from milp_ray.report.html.command import report_of_job
from milp_ray.study.run import Outcome
from milp_ray.study.run_folder import RunFolder
from tests.report.runs import aliases
from tests.report.test_html import Page
from tests.report.test_html_live import begun, files, search


def ended(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """How a job with this outcome ends, and what it prints after the run's own lines."""
    told: list[str] = []
    monkeypatch.setattr(entry, "print_outcome", lambda found: found.exit_code)
    monkeypatch.setattr(entry.out, "print", lambda text, **_: told.append(text))
    return entry._ended(outcome), "\n".join(told)


def test_a_job_writes_the_report_with_its_model_check_and_says_where(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended(Outcome(folder, 3), monkeypatch) == (0, f"report: {folder.root / 'report.html'}")
    page = Page((folder.root / "report.html").read_text(encoding="utf-8"))
    assert page.rows.keys() == set(aliases(3)) and "was fitted anew" in page.text


@pytest.mark.parametrize("failed", [0, 2])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "OSError at "),
        (ValueError("what a user wrote"), "ValueError at "),
        (MemoryError(), "MemoryError at "),
    ],
)
def test_what_keeps_it_from_being_written_is_one_line_and_no_exit_code(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, failed: int
) -> None:
    def fails(*_: object) -> str:
        raise error

    monkeypatch.setattr(command, "render", fails)
    before = files(folder)
    code, told = ended(Outcome(folder, 3, trials_failed=failed), monkeypatch)
    assert code == (3 if failed else 0) and files(folder) == before
    assert told.startswith(f"note: no report was written ({words}") and "\n" not in told
    assert told.endswith(f"milp-ray report {folder.root}") and "user wrote" not in told


def test_a_run_without_a_trial_has_no_report_and_says_why(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    assert "(the run has no tables yet, and no trial in its event logs)" in report_of_job(folder)


def test_a_job_that_is_stopped_does_not_wait_for_a_report(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended(Outcome(folder, 3, interrupted=True), monkeypatch) == (130, "")
    assert not (folder.root / "report.html").exists()


@pytest.mark.usefixtures("own_mirrors")
def test_at_a_url_the_report_is_there_too(tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    folder = begun(tmp_path)
    search(folder, aliases(3)[0], 8)
    for path, content in files(folder).items():
        store.pipe(f"/jobs/{path.relative_to(tmp_path)}", content)
    assert report_of_job(RunFolder.open("memory://jobs/s")) == "report: memory://jobs/s/report.html"
    assert b"<title>milp_ray: s</title>" in store.cat("/jobs/s/report.html")
