"""Why a worker was lost, on one line, and never a user's text."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import cloudpickle

from milp_ray.tune.search.scheduler import KeepActors
from milp_ray.tune.workers.last_words import last_words, last_words_of
from milp_ray.tune.workers.trial_runner import WorkerBroke

CANARY = "zanzibarcanary"
DIED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: MemoryTrial\n\tpid: 77\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR "
    "Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. "
    "{more} (1) the OOM killer"
)
CREATION = (
    "The actor died because of an error raised in its creation task, ray::MemoryTrial.__init__()\n"
    '  File "/opt/site-packages/milp_ray/tune/trainable.py", line 71, in setup\n'
    '  File "/opt/site-packages/torch/x.py", line 9, in f\n{last}'
)


def of_task(error: Exception) -> ray.exceptions.RayTaskError:
    try:
        raise error
    except Exception as raised:
        text = "".join(traceback.format_exception(raised))
    return ray.exceptions.RayTaskError("step", text, error, "ray::MemoryTrial", 7, "127.0.0.1")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (of_task(WorkerBroke("RuntimeError at adapters.py:135")), "RuntimeError at adapters.py:135"),
        (of_task(ModuleNotFoundError("No module named 'zork'")), ": No module named 'zork'"),
        (of_task(ValueError(f"{CANARY} wrote\nthis")), "ValueError at test_last_words.py:"),
        (
            ray.exceptions.RayActorError(error_msg=DIED.format(more="There are some potential root causes.")),
            "its process ended (SYSTEM_ERROR): Worker unexpectedly exits with a connection error code 2. End",
        ),
        (
            ray.exceptions.RayActorError(error_msg=DIED.format(more="Some common causes include:")),
            "its process ended (SYSTEM_ERROR): Worker unexpectedly exits with a connection error code 2. End",
        ),
        (
            ray.exceptions.RayActorError(
                error_msg=CREATION.format(last="ModuleNotFoundError: No module named 'zork'")
            ),
            "ModuleNotFoundError at x.py:9: No module named 'zork'",
        ),
        (
            ray.exceptions.RayActorError(error_msg=CREATION.format(last=f"ValueError: {CANARY}")),
            "ValueError at x.py:9",
        ),
        (
            ray.exceptions.OutOfMemoryError(
                "Task was killed due to the node running low on memory.\nRefer to it"
            ),
            "Task was killed due to the node running low on memory.",
        ),
    ],
)
def test_what_is_told_of_a_lost_worker(error: Exception, says: str) -> None:
    words = last_words(error)
    assert says in words and CANARY not in words and "\n" not in words and len(words) <= 240


def test_the_searcher_hears_them_from_what_tune_kept_of_the_trial(tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []
    scheduler = KeepActors(lambda: False, lambda *words: heard.append(words))
    trial: Any = SimpleNamespace(trial_id="t1", pickled_error_file=str(tmp_path / "error.pkl"))
    scheduler.on_trial_error(None, trial)
    (tmp_path / "error.pkl").write_bytes(cloudpickle.dumps(of_task(WorkerBroke("a place"))))
    scheduler.on_trial_error(None, trial)
    assert heard == [("t1", ""), ("t1", "a place")]
    assert last_words_of(SimpleNamespace(pickled_error_file=None)) == ""
