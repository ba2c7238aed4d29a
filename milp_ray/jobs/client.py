"""Submitting jobs to a Ray cluster, following them, and telling the truth about how they ended.

A thin layer over Ray's :class:`JobSubmissionClient`. What it adds: a submission id that follows from the
job's content, so that a repeated submission finds the job that is there already; the job's own exit code; a
stopped job that does not count as success; one error instead of a traceback where the cluster cannot be had.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from milp_ray.errors import ClusterError, MilpRayError
from milp_ray.jobs.package import Package

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

STOPPED = 130
_POLL_SECONDS = 1.0
_LOST_SECONDS = 120.0
_FINISHED = ("SUCCEEDED", "FAILED", "STOPPED")
_SECRET_NAME = re.compile(
    r"TOKEN(?!IZER)|SECRET|PASSW(OR)?D|CREDENTIAL|API_?KEY|PRIVATE|ACCESS_KEY", re.IGNORECASE
)
_NAMES_A_PLACE = re.compile(r"_(FILE|PATH|DIR|URL)$", re.IGNORECASE)


class JobError(MilpRayError):
    """There is no such job, or what is asked of the job client is not allowed."""


@dataclass(frozen=True)
class Submitted:
    """A submission: its id, and whether it is new, found running, or found done."""

    id: str
    state: str


def token_of(file: Path | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The cluster's token: from a file, else as Ray finds it (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH).

    Raises:
        JobError: a file is named and holds none.
    """
    named = file or (Path(path) if (path := environ.get("RAY_AUTH_TOKEN_PATH")) else None)
    if file is None and environ.get("RAY_AUTH_TOKEN"):
        return environ["RAY_AUTH_TOKEN"].strip()
    if named is None:
        return None
    try:
        token = named.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(
            f"the token cannot be read: {type(error).__name__}",
            where=str(named),
            expected="a file that holds the cluster's token",
            remedy="check --token-file or RAY_AUTH_TOKEN_PATH",
        ) from None
    if not token:
        raise JobError("the token file is empty", where=str(named), expected="the cluster's token")
    return token


def connect(address: str | None, token: str | None, *, insecure: bool = False) -> JobSubmissionClient:
    """A client of the cluster at ``address``.

    Args:
        address: http(s)://host:port of the dashboard; None: RAY_API_SERVER_ADDRESS, else RAY_ADDRESS.
        token: sent as a bearer token.
        insecure: allows an address of another machine without a token.

    Raises:
        JobError: no usable address, or another machine's without a token.
        ClusterError: nothing answers there, or the token is refused.
    """
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise JobError(
            f"{found!r} is not the address of a dashboard" if found else "no address",
            expected="http://host:8265 or https://host",
            remedy="name it with --address, or in RAY_ADDRESS",
        )
    if parts.username or parts.password:
        raise JobError("a password in the address", remedy="use a token: --token-file, RAY_AUTH_TOKEN_PATH")
    if token is None and not insecure and not _is_loopback(parts.hostname):
        raise JobError(
            f"{parts.hostname} is another machine, and there is no token",
            expected="a cluster that asks for a token: whoever reaches one without can run anything on it",
            remedy="set --token-file or RAY_AUTH_TOKEN_PATH, or insist with --insecure",
        )
    from ray.job_submission import JobSubmissionClient

    for name in (
        "dashboard.modules.dashboard_sdk",
        "dashboard.modules.job.sdk",
        "_private.runtime_env.packaging",
    ):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    headers = {"Authorization": f"Bearer {token}"} if token else None
    with _answering(found), _address_of_ours(found):
        return JobSubmissionClient(found, headers=headers)


def submit(
    client: JobSubmissionClient, package: Package, environment: Mapping[str, str], *, again: bool = False
) -> Submitted:
    """Submit a job, or find it: one that runs is taken over, and one that is done is not repeated.

    Args:
        client: of the cluster.
        package: the job.
        environment: variables of the job. They can be read in the dashboard: no secrets.
        again: submit even if the job is done already.

    Raises:
        JobError: a variable looks like a secret.
        ClusterError: the cluster cannot be had.
    """
    _check_environment(environment)
    prefix = f"milp-{package.study.name}-{package.digest}"
    with _answering(client.get_address()):
        attempts = _attempts(client, prefix)
        last = attempts[max(attempts)] if attempts else None
        if last is not None and state_of(last) not in _FINISHED:
            return Submitted(str(last.submission_id), "running")
        if last is not None and state_of(last) == "SUCCEEDED" and not again:
            return Submitted(str(last.submission_id), "done")
        name = f"{prefix}-{max(attempts, default=0) + 1}"
        with tempfile.TemporaryDirectory(prefix="milp-job-") as folder:
            package.copy_to(Path(folder))
            try:
                client.submit_job(
                    entrypoint=package.entrypoint,
                    submission_id=name,
                    runtime_env={"working_dir": folder, "env_vars": dict(environment)},
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
    say: Callable[[str], object],
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
    say(f"{said[sent.state]} {sent.id}")
    if write is None or sent.state == "done":
        return 0
    try:
        code = follow(client, sent.id, write)
    except KeyboardInterrupt as stop:
        stop.add_note(f"the job goes on; stop it with: milp-ray stop {sent.id}")
        raise
    say(f"{sent.id}: {state_of(details(client, sent.id))}, exit code {code}")
    return code


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], object]) -> int:
    """Pass on a job's output until it ends; returns its exit code (see :func:`exit_code`).

    A lost connection is taken up again, without repeating output, for two minutes.

    Raises:
        JobError: no such job.
        ClusterError: the cluster no longer answers. The job may go on.
    """
    written, lost = 0, None
    while True:
        try:
            state = state_of(details(client, job))
            for text in _tail(client, job, written):
                write(text)
                written += len(text)
            lost = None
            if state_of(details(client, job)) in _FINISHED or state in _FINISHED:
                break
        except ClusterError:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > _LOST_SECONDS:
                raise
        time.sleep(_POLL_SECONDS)
    return exit_code(details(client, job))


def details(client: JobSubmissionClient, job: str) -> JobDetails:
    """What the cluster knows of a job.

    Raises:
        JobError: no such job.
        ClusterError: the cluster cannot be had.
    """
    with _answering(client.get_address()):
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
    with _answering(client.get_address()):
        found = [job for job in client.list_jobs() if job.submission_id]
    return sorted(found, key=lambda job: job.start_time or 0)


def stop(client: JobSubmissionClient, job: str, seconds: float = 60.0) -> str:
    """Stop a job and wait for its end; returns its state then.

    Raises:
        JobError: no such job.
        ClusterError: the cluster cannot be had, or the job does not end.
    """
    if state_of(details(client, job)) in _FINISHED:
        return state_of(details(client, job))
    with _answering(client.get_address()):
        client.stop_job(job)
    deadline = time.monotonic() + seconds
    while (state := state_of(details(client, job))) not in _FINISHED:
        if time.monotonic() > deadline:
            raise ClusterError(f"the job does not end: {state} after {seconds:.0f} s", where=job)
        time.sleep(_POLL_SECONDS / 2)
    return state


def exit_code(job: JobDetails) -> int:
    """A finished job's: its driver's own, 130 where it was stopped, 1 where it never began."""
    state = state_of(job)
    if state == "SUCCEEDED":
        return 0
    if state == "STOPPED":
        return STOPPED
    code = job.driver_exit_code
    return code if code is not None and 0 < code < 128 else 1


def is_over(job: JobDetails) -> bool:
    """Whether a job has ended, one way or another."""
    return state_of(job) in _FINISHED


def environment_of(words: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` words as variables.

    Raises:
        JobError: a word is something else.
    """
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise JobError("is not a variable", where=f"--env {name}", expected="NAME=VALUE")
        found[name] = value
    return found


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
    """The job's output behind its first ``skip`` characters, until its end; by polling where that fails.

    Raises:
        ClusterError: the cluster does not answer.
    """
    loop = asyncio.new_event_loop()
    stream = client.tail_job_logs(job).__aiter__()
    began = False
    try:
        while True:
            text = loop.run_until_complete(stream.__anext__())
            began = True
            if skip:
                text, skip = text[skip:], max(0, skip - len(text))
            if text:
                yield text
    except StopAsyncIteration:
        return
    except Exception:
        if began:  # the connection broke: the caller asks again
            return
    finally:
        loop.run_until_complete(stream.aclose())
        loop.close()
    # A proxy without web sockets.
    with _answering(client.get_address()):
        yield client.get_job_logs(job)[skip:]


def _check_environment(environment: Mapping[str, str]) -> None:
    for name in environment:
        if _SECRET_NAME.search(name) and not _NAMES_A_PLACE.search(name):
            raise JobError(
                f"{name} looks like a secret, and a job's variables can be read in the dashboard",
                expected="the name of a file that holds it, or a variable that the cluster's nodes have",
                remedy="mount the secret on the nodes (Kubernetes: envFrom a Secret) and leave it out here",
            )


def _metadata(package: Package) -> dict[str, str]:
    """What the dashboard shows beside a job. The number of users is added by the job itself."""
    # `job_name` is what the dashboard shows as the name.
    found = {"job_name": package.study.name, "study": package.study.name, "digest": package.digest}
    if commit := _commit(package.root):
        found["commit"] = commit
    return found


def _commit(root: Path) -> str | None:
    """The git commit of a folder, marked where it has been changed since."""

    def git(*words: Sequence[str] | str) -> str:
        command = ["git", "-C", str(root), *map(str, words)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _address_of_ours(address: str) -> Iterator[None]:
    """Ray prefers the environment to the address that it is given."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _answering(address: str) -> Iterator[None]:
    """Turn what goes wrong on the way to the cluster into :class:`ClusterError`."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise ClusterError(
            "the cluster refuses the token",
            where=address,
            expected="the token that the cluster was started with",
            remedy="check --token-file, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH",
        ) from None
    except (ConnectionError, requests.exceptions.RequestException) as error:
        raise ClusterError(
            f"the cluster does not answer ({type(error).__name__})",
            where=address,
            expected="the dashboard of a running Ray head",
            remedy="check --address or RAY_ADDRESS, and that this machine may reach it",
        ) from None
    except RuntimeError as error:
        raise ClusterError(f"the cluster refused: {str(error)[:300]}", where=address) from None
