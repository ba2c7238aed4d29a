"""A lost group of workers, and a final job that comes too early, from the command line."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from .conftest import Start, call
from .test_end_to_end import events, kill_a_worker, told, wait_for

pytestmark = pytest.mark.slow


def test_a_final_job_without_a_finished_search_is_refused(study_file: Path, start: Start) -> None:
    run = study_file.parent / "runs" / "small"
    process = start("search", str(study_file), "trial.epochs=30", "search.surrogate=random")
    wait_for(lambda: len(told(run)) >= 1, process)
    process.send_signal(signal.SIGINT)
    process.communicate()
    code, output = call("final", str(run))
    assert code == 2 and "no user's search is over" in output and "milp-ray resume" in output
    code, output = call("final", str(run), "final.epochs=9")
    assert code == 2 and "a run keeps its study" in output


@pytest.mark.timeout(600)
def test_a_trial_whose_group_was_lost_too_often_is_told_as_failed(study_file: Path, start: Start) -> None:
    run = study_file.parent / "runs" / "small"
    quick = ["search.trials=2", "search.initial=2", "search.surrogate=random", "final.automatic=false"]
    two = ["ray.workers_per_trial=2", "ray.parallelism=ddp", "ray.cpus_per_worker=1", "ray.max_failures=0"]
    process = start("search", str(study_file), *quick, *two, "trial.epochs=40")
    wait_for(  # a trial then, no measurement without a memory
        lambda: sum(e["event"] == "reference" for found in events(run).values() for e in found) == 2, process
    )
    kill_a_worker(process, "ray::Rank.slice")
    output = process.communicate()[0]
    assert process.returncode == 3, output
    ends = [e for found in events(run).values() for e in found if e["event"] in ("told", "failed")]
    lost = [e for e in ends if e["event"] == "failed"]
    assert len(ends) == 4 and len(lost) == 1
    assert "a worker died" in str(lost[0]["reason"])
