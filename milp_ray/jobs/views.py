"""What `milp-ray status` prints of a cluster's jobs."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from milp_ray.jobs.client import reason_of, state_of

if TYPE_CHECKING:
    from ray.job_submission import JobDetails


def jobs_view(jobs: Sequence[JobDetails]) -> RenderableType:
    """All jobs, a line each."""
    if not jobs:
        return Text("no jobs")
    table = Table("job", "state", "exit code", "study", "users", "began", "took", box=None, pad_edge=False)
    table.columns[0].no_wrap = True  # an id is to be copied whole
    for job in jobs:
        about = job.metadata or {}
        cells = (
            job.submission_id or "",
            state_of(job),
            _code(job),
            about.get("study", ""),
            about.get("users", ""),
            _time(job.start_time),
            _took(job),
        )
        table.add_row(*(Text(cell) for cell in cells))  # others' metadata may look like markup
    return table


def job_view(job: JobDetails) -> Text:
    """One job, a line for each fact."""
    facts = {
        "job": job.submission_id,
        "state": state_of(job),
        "exit code": _code(job),
        "command": job.entrypoint,
        **dict(sorted((job.metadata or {}).items())),
        "began": _time(job.start_time),
        "took": _took(job),
        "message": reason_of(job),
    }
    return Text("\n".join(f"{name}: {value}" for name, value in facts.items() if value))


def _code(job: JobDetails) -> str:
    return "" if job.driver_exit_code is None else str(job.driver_exit_code)


def _time(milliseconds: int | None) -> str:
    if not milliseconds:
        return ""
    return datetime.datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(" ", "seconds")


def _took(job: JobDetails) -> str:
    if not job.start_time or not job.end_time:
        return ""
    return str(datetime.timedelta(seconds=round((job.end_time - job.start_time) / 1000)))
