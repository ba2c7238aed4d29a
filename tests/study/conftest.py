"""A small real study: two users with plain texts on a tiny random Llama, run by the command line
itself."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from milp_ray.cli import app

CANARY = "zanzibarcanary"


def user_line(number: int, samples: int = 14, user_id: str | None = None) -> str:
    """One JSON line; every text and the id hold the canary."""
    history, found = [f"hello from {CANARY}, I am number {number} and like plain tea"], []
    for index in range(samples):
        query = f"what about topic {index} of user {number}, {CANARY}?"
        response = f"topic {index} is fine, said {CANARY} {number} on day {index * 7 + number}"
        history.append(f"on day {index} the {CANARY} {number} wrote a line of its own")
        found.append({"query": query, "response": response, "n_hist": len(history)})
        history.append(response)
    record = {
        "user_id": user_id or f"{CANARY}-{number}",
        "profile": None,
        "history": history,
        "samples": found,
    }
    return json.dumps(record)


def bare_model(folder: Path, layers: int = 8, width: int = 256) -> Path:
    """A folder with the structure of a Llama, of which nothing but config.json is there."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama", "num_hidden_layers": layers, "num_attention_heads": 4,
        "hidden_size": width, "intermediate_size": 2 * width,
        "vocab_size": 320, "max_position_embeddings": 1024,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_study(folder: Path, model: Path) -> Path:
    """A study of two users and six trials each, its data beside it."""
    lines = [user_line(1), user_line(2, user_id="../../zanzibarcanary")]
    (folder / "users.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    study = {
        "name": "small",
        "seed": 3,
        "model": {"path": str(model)},
        "data": {"path": str(folder / "users.jsonl")},
        "prompts": {"max_length": 96},
        "memory": {"ranks": [2, 4, 8], "defaults": {"size": 4}},
        "optimizer": {"learning_rate": 5e-3, "batch_size": 4},
        "trial": {"epochs": 1, "max_new_tokens": 8, "slice_seconds": 0.5},
        "search": {"trials": 6, "initial": 4, "batch": 2, "surrogate": "gp"},
        "final": {"epochs": 1, "instruct_epochs": 1},
        # A worker costs more to start than all these trials, and trying its first steps half as
        # much.
        "ray": {"max_concurrent": 1, "rehearse": False},
        "storage": {"path": str(folder / "runs")},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


@pytest.fixture
def study_file(tmp_path: Path, shallow_model: Path) -> Path:
    """A small study in a folder of its own."""
    return write_study(tmp_path, shallow_model)


def call(*words: str) -> tuple[int, str]:
    """Exit code and output of `milp-ray`, in this process: for commands that start nothing."""
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output + (result.stderr if result.stderr_bytes else "")


Start = Callable[..., "subprocess.Popen[str]"]


@contextlib.contextmanager
def starting() -> Iterator[Start]:
    """Starts `milp-ray` with its own temporary folder, as a person would from a shell."""
    scratch = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # short: Ray's sockets go below it

    def run(*words: str, program: Sequence[str] = ("-m", "milp_ray")) -> subprocess.Popen[str]:
        environment = os.environ | {"TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
        environment.pop("RAY_ADDRESS", None)
        return subprocess.Popen(
            [sys.executable, *program, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    run.scratch = scratch  # type: ignore[attr-defined]
    try:
        yield run
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture
def start() -> Iterator[Start]:
    """See :func:`starting`."""
    with starting() as run:
        yield run
