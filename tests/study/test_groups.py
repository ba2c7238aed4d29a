"""A group of workers that is lost more often than may be, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Start
from .test_end_to_end import events, kill_a_worker, wait_for

pytestmark = pytest.mark.slow


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
