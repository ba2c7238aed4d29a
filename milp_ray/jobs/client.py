"""Submitting jobs to a Ray cluster, following them, and telling the truth about how they ended.

A thin layer over Ray's :class:`JobSubmissionClient`. What it adds: a submission id that follows
from the job's content, so that a repeated submission finds the job that is there already; the job's
own exit code; a stopped job that does not count as success. How the cluster is reached is
:mod:`milp_ray.jobs.connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from milp_ray.config.loading import looks_secret
from milp_ray.errors import ClusterError, own_words
from milp_ray.jobs.connection import JobError, answering
from milp_ray.jobs.package import Package
from milp_ray.storage import Scratch, has_credentials, is_url, writing

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

STOPPED = 130
_POLL_SECONDS = 1.0
_LOST_SECONDS = 120.0
_REPEATED = "last available logs"
_FINISHED = ("SUCCEEDED", "FAILED", "STOPPED")
_SECRET_NAME = re.compile(
    r"TOKEN(?!IZER)|SECRET|PASSWORD|PASSPHRASE|CREDENTIAL|PRIVATE|API_?KEY"
    r"|(?:^|_)(?:PASS|PASSWD|PWD|PAT|KEY|AUTH|AUTHORIZATION)(?:$|_)",
    re.IGNORECASE,
)
_NAMES_A_PLACE = re.compile(r"_(FILE|PATH|DIR|URL)$", re.IGNORECASE)


@dataclass(frozen=True)
class Submitted:
    """A submission: its id, and whether it is new, found running, or found done."""

    id: str
    state: str


def submit(client: JobSubmissionClient, package: Package, *, again: bool = False) -> Submitted:
    """Submit a job, or find it: one that runs is taken over, and one that is done is not repeated.

    Args:
        client: of the cluster.
        package: the job.
        again: submit even if the job is done already.

    Raises:
        ClusterError: the cluster cannot be had.
    """
    prefix = f"milp-{package.study.name}-{package.digest}"
    with answering(client.get_address()):
        attempts = _attempts(client, prefix)
        last = attempts[max(attempts)] if attempts else None
        if last is not None and state_of(last) not in _FINISHED:
            return Submitted(str(last.submission_id), "running")
        if last is not None and state_of(last) == "SUCCEEDED" and not again:
            return Submitted(str(last.submission_id), "done")
        name = f"{prefix}-{max(attempts, default=0) + 1}"
        with writing(Path(tempfile.gettempdir())):
            scratch = Scratch("milp-job-")
        with scratch:
            package.copy_to(scratch.room)
            try:
                client.submit_job(
                    entrypoint=package.entrypoint,
                    submission_id=name,
                    runtime_env={"working_dir": str(scratch.room), "env_vars": dict(package.environment)},
                    metadata=_metadata(package),
                )
            except RuntimeError:
                # Whoever submits the same at the same moment wins, and is followed.
                if name not in {job.submission_id for job in client.list_jobs()}:
                    raise
                return Submitted(name, "running")
    return Submitted(name, "new")


def report(
    client: JobSubmissionClient,
    sent: Submitted,
    notify: Callable[[str], object],
    write: Callable[[str], object] | None,
) -> int:
    """Say what became of a submission and, with ``write``, follow the job; returns the exit code.

    Interrupting this leaves the job alone, and says how to stop it.

    Raises:
        JobError, ClusterError: as :func:`follow`.
    """
    said = {
        "new": "submitted as",
        "running": "the same job is under way as",
        "done": "the same job is done already (submit it with --again to run it again):",
    }
    notify(f"{said[sent.state]} {sent.id}")
    if write is None or sent.state == "done":
        return 0
    try:
        ended = follow(client, sent.id, write)
    except KeyboardInterrupt as stop:
        stop.add_note(f"the job goes on; stop it with: milp-ray stop {sent.id}")
        raise
    code = exit_code(ended)
    if state_of(ended) == "FAILED" and ended.driver_exit_code is None:
        notify(f"the job's command never ran to its end: {reason_of(ended)}")
    notify(f"{sent.id}: {state_of(ended)}, exit code {code}")
    return code


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], object]) -> JobDetails:
    """Pass on a job's output until it ends; returns what the cluster knows of it then.

    A lost connection is taken up again, without repeating output, for two minutes.

    Raises:
        JobError: no such job.
        ClusterError: the cluster no longer answers, or has forgotten the job. The job may go on.
    """
    written, lost, known = 0, None, False
    while True:
        try:
            details(client, job)
            known = True
            for text in _tail(client, job, written):
                write(text)
                written += len(text)
            lost = None
            if is_over(ended := details(client, job)):
                return ended
        except JobError:
            if not known:
                raise
            raise ClusterError(
                "the cluster no longer knows the job: its head was started anew",
                where=job,
                remedy="submit the job again, which resumes its run",
            ) from None
        except ClusterError:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > _LOST_SECONDS:
                raise
        time.sleep(_POLL_SECONDS)


def details(client: JobSubmissionClient, job: str) -> JobDetails:
    """What the cluster knows of a job.

    Raises:
        JobError: no such job.
        ClusterError: the cluster cannot be had.
    """
    with answering(client.get_address()):
        try:
            return client.get_job_info(job)
        except RuntimeError as error:
            if "404" in str(error) or "does not exist" in str(error):
                raise JobError("no such job", where=job, remedy="list them with: milp-ray status") from None
            raise


def jobs(client: JobSubmissionClient) -> list[JobDetails]:
    """The cluster's submitted jobs, oldest first.

    Raises:
        ClusterError: the cluster cannot be had.
    """
    with answering(client.get_address()):
        found = [job for job in client.list_jobs() if job.submission_id]
    return sorted(found, key=lambda job: job.start_time or 0)


def stop(client: JobSubmissionClient, job: str, seconds: float = 60.0) -> tuple[str, bool]:
    """Stop a job and wait for its end.

    Returns:
        Its state then, and whether it was over before.

    Raises:
        JobError: no such job.
        ClusterError: the cluster cannot be had, or the job does not end.
    """
    if is_over(found := details(client, job)):
        return state_of(found), True
    with answering(client.get_address()):
        client.stop_job(job)
    deadline = time.monotonic() + seconds
    while not is_over(found := details(client, job)):
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the job does not end: {state_of(found)} after {seconds:.0f} s",
                where=job,
                remedy="look into its log: milp-ray status, ray job logs",
            )
        time.sleep(_POLL_SECONDS / 2)
    return state_of(found), False


def exit_code(job: JobDetails) -> int:
    """A finished job's: its driver's own, 130 where it was stopped, 1 where it never began."""
    state = state_of(job)
    if state == "SUCCEEDED":
        return 0
    if state == "STOPPED":
        return STOPPED
    code = job.driver_exit_code
    return code if code is not None and 0 < code < 256 else 1


def is_over(job: JobDetails) -> bool:
    """Whether a job has ended, one way or another."""
    return state_of(job) in _FINISHED


def environment_of(words: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` words as variables. They can be read in the dashboard.

    Raises:
        JobError: a word is something else, or looks like a secret.
    """
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise JobError("is not a variable", where=f"--env {name}", expected="NAME=VALUE")
        by_name = _SECRET_NAME.search(name) and not _NAMES_A_PLACE.search(name)
        if by_name or looks_secret(value) or (is_url(value) and has_credentials(value)):
            raise JobError(
                f"{name} looks like a secret, and a job's variables can be read in the dashboard",
                expected="the name of a file that holds it, or a variable that the cluster's nodes have",
                remedy="mount the secret on the nodes (Kubernetes: envFrom a Secret) and leave it out here",
            )
        found[name] = value
    return found


def reason_of(job: JobDetails) -> str:
    """What the cluster says of how a job ended, without the job's own output, which it repeats."""
    message = (getattr(job, "message", None) or "").partition(_REPEATED)[0].rstrip().rstrip(",")
    return own_words(message)


def state_of(job: JobDetails) -> str:
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    return str(getattr(job.status, "value", job.status))


def _attempts(client: JobSubmissionClient, prefix: str) -> dict[int, JobDetails]:
    pattern = re.compile(re.escape(prefix) + r"-([0-9]+)")
    found = {}
    for job in client.list_jobs():
        if match := pattern.fullmatch(job.submission_id or ""):
            found[int(match.group(1))] = job
    return found


def _tail(client: JobSubmissionClient, job: str, skip: int) -> Iterator[str]:
    """The job's output behind its first ``skip`` characters, until its end.

    Polled where the cluster does not stream it.

    The connection is another thread's, so that an interrupt here finds nothing half done.

    Raises:
        ClusterError: the cluster does not answer.
    """
    texts: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    async def pump() -> None:
        async for text in client.tail_job_logs(job):
            texts.put(text)

    def listen() -> None:
        with contextlib.suppress(Exception):  # a broken connection: the caller asks again
            asyncio.run(pump())
        texts.put(None)

    threading.Thread(target=listen, name="job output", daemon=True).start()
    began = False
    while (text := texts.get()) is not None:
        began = True
        if skip:
            text, skip = text[skip:], max(0, skip - len(text))
        if text:
            yield text
    if not began:  # nothing yet, or a proxy without web sockets
        with answering(client.get_address()):
            yield client.get_job_logs(job)[skip:]


def _metadata(package: Package) -> dict[str, str]:
    """What the dashboard shows beside a job. The number of users is added by the job itself."""
    # `job_name` is what the dashboard shows as the name.
    found = {"job_name": package.study.name, "study": package.study.name, "digest": package.digest}
    if commit := _commit(package.root):
        found["commit"] = commit
    return found


def _commit(root: Path) -> str | None:
    """The git commit of a folder, marked where it has been changed since."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
