"""The job client against a cluster that is played: ids, retries, exit codes, refusals."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from milp_ray.config.loading import load_study
from milp_ray.errors import ClusterError
from milp_ray.jobs import client
from milp_ray.jobs.client import environment_of, exit_code, follow, submit
from milp_ray.jobs.connection import JobError, connect, token_of
from milp_ray.jobs.package import Package
from milp_ray.jobs.views import jobs_view


class Cluster:
    """Plays Ray's JobSubmissionClient."""

    def __init__(self) -> None:
        self.jobs: dict[str, Any] = {}
        self.sent: list[dict[str, Any]] = []
        self.broken = 0
        self.output = ["first\n", "second\n", "third\n"]
        self.race = False

    def get_address(self) -> str:
        return "http://127.0.0.1:8265"

    def list_jobs(self) -> list[Any]:
        return list(self.jobs.values())

    def get_job_info(self, job: str) -> Any:
        if job not in self.jobs:
            raise RuntimeError("Request failed with status code 404: does not exist")
        return self.jobs[job]

    def submit_job(self, **given: Any) -> str:
        self.sent.append(given)
        files = sorted(p.name for p in Path(given["runtime_env"]["working_dir"]).rglob("*") if p.is_file())
        self.sent[-1]["files"] = files
        self.put(given["submission_id"], "RUNNING")
        if self.race:
            raise RuntimeError("submission_id already used")
        return str(given["submission_id"])

    def put(self, name: str, status: str, code: int | None = None) -> None:
        self.jobs[name] = SimpleNamespace(
            submission_id=name, status=status, driver_exit_code=code, metadata={}, start_time=len(self.jobs)
        )

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for number, text in enumerate(self.output):
            if self.broken and number == 2:
                self.broken -= 1
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield text
        self.jobs[job].status = "FAILED"
        self.jobs[job].driver_exit_code = 3


@pytest.fixture
def job(tmp_path: Path) -> Package:
    study = tmp_path / "study.yaml"
    study.write_text("name: small\nmodel: {path: m}\ndata: {path: /d}\n")
    return Package(
        tmp_path, load_study(study), (Path("study.yaml"),), "python x.py study.yaml", {"A": "1"}, "abc123"
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_POLL_SECONDS", 0.01)


def sent(cluster: Cluster, job: Package, **options: Any) -> tuple[str, str]:
    found = submit(cluster, job, **options)  # type: ignore[arg-type]
    return found.id, found.state


def test_the_same_job_is_never_there_twice_and_goes_on_after_a_failure(job: Package) -> None:
    cluster = Cluster()
    assert sent(cluster, job) == ("milp-small-abc123-1", "new")
    assert sent(cluster, job) == ("milp-small-abc123-1", "running")
    cluster.put("milp-small-abc123-1", "STOPPED")
    assert sent(cluster, job) == ("milp-small-abc123-2", "new")
    cluster.put("milp-small-abc123-2", "FAILED", 1)
    assert sent(cluster, job) == ("milp-small-abc123-3", "new")
    cluster.put("milp-small-abc123-3", "SUCCEEDED", 0)
    assert sent(cluster, job) == ("milp-small-abc123-3", "done")
    assert sent(cluster, job, again=True) == ("milp-small-abc123-4", "new")
    assert len(cluster.sent) == 4
    assert cluster.sent[0]["files"] == ["study.yaml"]
    assert cluster.sent[0]["metadata"]["study"] == "small"
    assert cluster.sent[0]["entrypoint"] == "python x.py study.yaml"
    assert cluster.sent[0]["runtime_env"]["env_vars"] == {"A": "1"}


def test_other_jobs_are_no_twins(job: Package) -> None:
    cluster = Cluster()
    for name in ("milp-small-abc1234-1", "milp-small-abc123-x", "milp-small-abc123-1-1", "raysubmit_x"):
        cluster.put(name, "RUNNING")
    assert sent(cluster, job) == ("milp-small-abc123-1", "new")


def test_losing_a_race_means_following_the_winner(job: Package) -> None:
    cluster = Cluster()
    cluster.race = True
    assert sent(cluster, job) == ("milp-small-abc123-1", "running")


@pytest.mark.parametrize("breaks", [0, 1, 2])
def test_output_comes_once_whatever_the_connection_does(job: Package, breaks: int) -> None:
    cluster, seen = Cluster(), []
    cluster.broken = breaks
    cluster.put("j", "RUNNING")
    assert exit_code(follow(cluster, "j", seen.append)) == 3  # type: ignore[arg-type]
    assert "".join(seen) == "first\nsecond\nthird\n"


def test_a_cluster_that_is_gone_ends_following(job: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_LOST_SECONDS", 0.05)
    cluster = Cluster()

    def gone(job: str) -> Any:
        raise ConnectionError("refused")

    monkeypatch.setattr(cluster, "get_job_info", gone)
    with pytest.raises(ClusterError, match="does not answer") as caught:
        follow(cluster, "j", print)  # type: ignore[arg-type]
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("STOPPED", None, 130),
        ("STOPPED", 0, 130),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", None, 1),
        ("FAILED", -9, 1),
        ("FAILED", 0, 1),
        ("FAILED", 130, 130),
        ("FAILED", 143, 143),
    ],
)
def test_exit_codes_tell_the_truth(status: str, code: int | None, expected: int) -> None:
    cluster = Cluster()
    cluster.put("j", status, code)
    assert exit_code(cluster.jobs["j"]) == expected


def test_unknown_jobs(job: Package) -> None:
    with pytest.raises(JobError, match="no such job"):
        follow(Cluster(), "nothing", print)  # type: ignore[arg-type]


def test_interrupting_leaves_the_job_alone(job: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    found = submit(cluster, job)  # type: ignore[arg-type]

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        client.report(cluster, found, str, interrupt)  # type: ignore[arg-type]
    assert "milp-ray stop milp-small-abc123-1" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "word",
    [
        *(
            f"{name}=hunter2"
            for name in ("HF_TOKEN", "aws_secret_access_key", "DB_PASSWORD", "OPENAI_API_KEY")
        ),
        *(
            f"{name}=hunter2"
            for name in ("DB_PASS", "PASSPHRASE", "GITHUB_PAT", "WANDB_KEY", "AUTHORIZATION")
        ),
        "DATABASE_URL=postgres://me:hunter2@host/db",
        "NOTE=hf_hunter2hunter2hunter2hunter2hunter2",
    ],
)
def test_secrets_are_no_variables(word: str) -> None:
    with pytest.raises(JobError, match=word.partition("=")[0]) as caught:
        environment_of([word])
    assert "hunter2" not in str(caught.value)


def test_names_that_only_look_like_secrets_are_fine() -> None:
    words = ["HF_TOKEN_PATH=/x", "AWS_SHARED_CREDENTIALS_FILE=/x", "TOKENIZERS_PARALLELISM=0", "KEYBOARD=de"]
    words += ["OMP_NUM_THREADS=1", "ENDPOINT_URL=http://host:9000", "COMPASS=1"]
    assert len(environment_of(words)) == len(words)


def test_variables() -> None:
    assert environment_of(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}
    for word in ("A", "=1", "1A=2", "A B=1"):
        with pytest.raises(JobError):
            environment_of([word])


@pytest.mark.parametrize(
    ("address", "fact"),
    [
        (None, "no address"),
        ("auto", "not the address"),
        ("10.0.0.1:6379", "not the address"),
        ("ray://head:10001", "not the address"),
        ("http://me:secret@head:8265", "a password"),
        ("http://head.example:8265", "another machine"),
        ("http://10.0.0.1:8265", "another machine"),
    ],
)
def test_addresses(address: str | None, fact: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(JobError, match=fact) as caught:
        connect(address, None)
    assert "secret@" not in str(caught.value)


def test_nobody_there() -> None:
    with pytest.raises(ClusterError, match="does not answer"):
        connect("http://127.0.0.1:9", None)


def test_tokens(tmp_path: Path) -> None:
    def found(file: Path | None = None, **environ: str) -> str | None:
        return token_of(file, environ, tmp_path)

    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert found() is None and found(RAY_AUTH_TOKEN="  ") is None
    assert found(file, RAY_AUTH_TOKEN="from-variable") == "from-file"
    assert found(RAY_AUTH_TOKEN=" x ", RAY_AUTH_TOKEN_PATH=str(file)) == "x"
    assert found(RAY_AUTH_TOKEN_PATH=str(file)) == "from-file"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("rays-own")
    assert found() == "rays-own"
    for wrong, fact in ((" \n", "empty"), ("two\nlines", "not a token"), ("tökèn", "not a token")):
        file.write_text(wrong)
        with pytest.raises(JobError, match=fact):
            found(file)
    with pytest.raises(JobError, match="cannot be read"):
        found(tmp_path / "none")


def test_a_head_that_was_started_anew_is_a_lost_cluster() -> None:
    cluster = Cluster()
    cluster.put("j", "RUNNING")

    async def restarted(job: str) -> AsyncIterator[str]:
        yield "first\n"
        del cluster.jobs[job]

    cluster.tail_job_logs = restarted  # type: ignore[method-assign]
    with pytest.raises(ClusterError, match="no longer knows") as caught:
        follow(cluster, "j", str)  # type: ignore[arg-type]
    assert caught.value.exit_code == 1


def test_stopping_what_is_over() -> None:
    cluster = Cluster()
    cluster.put("j", "FAILED", 1)
    assert client.stop(cluster, "j") == ("FAILED", True)  # type: ignore[arg-type]


def test_interrupted_while_it_waits_for_output(job: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, seen = Cluster(), list[str]()
    cluster.put("j", "RUNNING")

    async def silent(job: str) -> AsyncIterator[str]:
        yield "first\n"
        await asyncio.sleep(60)

    monkeypatch.setattr(cluster, "tail_job_logs", silent)
    # A shell's background jobs, and what they start, ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            client.report(cluster, client.Submitted("j", "new"), str, seen.append)  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["first\n"] and "milp-ray stop j" in caught.value.__notes__[0]


def test_metadata_that_looks_like_markup_is_shown() -> None:
    cluster = Cluster()
    cluster.put("[/x]", "FAILED", 1)
    cluster.jobs["[/x]"].metadata = {"study": "[/bold]"}
    cluster.jobs["[/x]"].end_time = cluster.jobs["[/x]"].start_time = 5
    text = io.StringIO()
    Console(file=text, width=200).print(jobs_view(list(cluster.jobs.values())))
    assert "[/x]" in text.getvalue() and "[/bold]" in text.getvalue()


def test_ids_are_whole_on_a_narrow_terminal() -> None:
    cluster, name = Cluster(), "milp-a-study-with-a-name-of-its-own-0123456789-12"
    cluster.put(name, "SUCCEEDED", 0)
    cluster.jobs[name].metadata = {"study": "a-study-with-a-name-of-its-own", "users": "1000"}
    cluster.jobs[name].start_time, cluster.jobs[name].end_time = 1_800_000_000_000, 1_800_000_900_000
    text = io.StringIO()
    Console(file=text, width=80).print(jobs_view(list(cluster.jobs.values())))
    assert name in text.getvalue()


def test_a_job_whose_command_never_ran_says_why_and_repeats_no_output() -> None:
    cluster, said = Cluster(), list[str]()
    cluster.put("j", "FAILED")
    message = "The actor died: \x1b[36mray::Job\x1b[39m\n  File x\nImportError: yaml of the folder, "
    cluster.jobs["j"].message = message + "last available logs (truncated):\nthe job's own words"

    async def nothing(job: str) -> AsyncIterator[str]:
        for text in ():
            yield text

    cluster.tail_job_logs = nothing  # type: ignore[method-assign]
    cluster.get_job_logs = lambda job: ""  # type: ignore[attr-defined]
    assert client.report(cluster, client.Submitted("j", "running"), said.append, str) == 1  # type: ignore[arg-type]
    assert said[1].endswith("ran to its end: The actor died: ray::Job File x ImportError: yaml of the folder")
