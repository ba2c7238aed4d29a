"""What Ray's dashboard shows of a run beside Ray's own facts: what a worker does, what a job is.

Only aliases, numbers and the study's name are shown: no user's text and no raw user id.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping

import ray


def log_line(name: str, text: str) -> None:
    """Write a line to the calling worker's log, which the dashboard shows beside the actor.

    The process title would not do: Ray exports titles as labels of the node's metrics, a series for
    every trial, at a port that asks for no token.

    Args:
        name: of the trial, or of the final job's task.
        text: numbers and fixed words.
    """
    print(f"{name} {text}", file=sys.stdout, flush=True)  # noqa: T201  (Ray makes it the actor's log)


def describe_job(facts: Mapping[str, str]) -> None:
    """Add facts to the Ray job that this driver runs in, if any; facts that are there already stay.

    Ray has no public way to do this from inside a job. Where its internals differ, the job shows
    less.
    """
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    job = (config.get("metadata") or {}).get("job_submission_id")
    if not job:
        return
    with contextlib.suppress(Exception):
        asyncio.run(_describe(str(job), facts))


async def _describe(job: str, facts: Mapping[str, str]) -> None:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.dashboard.modules.job.common import JobInfoStorageClient

    store = JobInfoStorageClient(GcsClient(address=ray.get_runtime_context().gcs_address))
    info = await store.get_info(job)
    if info is None:
        return
    info.metadata = {**facts, **(info.metadata or {})}
    await store.put_info(job, info)
