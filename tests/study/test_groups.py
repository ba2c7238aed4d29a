"""Studies whose trials have several workers, and the final job by itself, from the command line."""

from __future__ import annotations

import signal
from pathlib import Path

import pandas as pd
import pytest

from .conftest import Start
from .test_end_to_end import events, kill_a_worker, told, wait_for

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
def test_two_workers_per_trial_find_what_one_finds(study_file: Path, start: Start) -> None:
    runs = study_file.parent / "runs"
    quick = ["search.trials=3", "search.initial=3", "search.surrogate=random"]
    two = ["ray.workers_per_trial=2", "ray.parallelism=zero3", "ray.cpus_per_worker=0.5"]

    def done(*words: str) -> str:
        process = start(*words)
        output = process.communicate()[0]
        assert process.returncode == 0, output
        return output

    assert "2 of 2 have a memory" in done("search", str(study_file), "name=one", *quick)
    searched = done("search", str(study_file), "name=two", *quick, *two, "final.automatic=false")
    assert f"milp-ray final {runs / 'two'}" in searched and not (runs / "two" / "memories").exists()
    assert "2 of 2 have a memory" in done("final", str(runs / "two"))
    # Aliases differ from run to run: users are compared by the order of their first losses.
    losses = [
        sorted(
            [
                loss
                for _, loss in sorted((e["id"], e["values"]["loss"]) for e in found if e["event"] == "told")
            ]  # type: ignore[index, type-var]
            for found in events(runs / name).values()
        )
        for name in ("one", "two")
    ]
    assert len(losses[0]) == 2 and len(losses[0][0]) == 3
    assert losses[1] == [pytest.approx(values, abs=1e-4) for values in losses[0]]
    scores = [
        pd.read_csv(runs / name / "tables" / "scores.csv").sort_values(["model", "loss"]).loss.tolist()
        for name in ("one", "two")
    ]
    assert len(scores[0]) == 6 and scores[1] == pytest.approx(scores[0], abs=1e-3)
    assert not list((runs / "two").rglob("checkpoints/*")) and not (runs / "two" / "train").exists()


def test_a_final_job_without_a_finished_search_is_refused(study_file: Path, start: Start) -> None:
    run = study_file.parent / "runs" / "small"
    process = start(
        "search", str(study_file), "trial.epochs=8", "search.surrogate=random", "ray.max_concurrent=1"
    )
    wait_for(lambda: len(told(run)) >= 1, process)
    process.send_signal(signal.SIGINT)
    process.communicate()
    refused = start("final", str(run))
    output = refused.communicate()[0]
    assert refused.returncode == 2 and "no user's search is over" in output and "milp-ray resume" in output
    other = start("final", str(run), "final.epochs=9")
    output = other.communicate()[0]
    assert other.returncode == 2 and "a run keeps its study" in output


@pytest.mark.timeout(600)
def test_a_trial_whose_group_was_lost_too_often_is_told_as_failed(study_file: Path, start: Start) -> None:
    run = study_file.parent / "runs" / "small"
    quick = ["search.trials=4", "search.initial=4", "search.surrogate=random", "final.automatic=false"]
    two = ["ray.workers_per_trial=2", "ray.parallelism=ddp", "ray.cpus_per_worker=1", "ray.max_failures=0"]
    process = start("search", str(study_file), *quick, *two, "trial.epochs=20")
    wait_for(  # a trial then, no measurement without a memory
        lambda: sum(e["event"] == "reference" for found in events(run).values() for e in found) == 2, process
    )
    kill_a_worker(process, "ray::Rank.slice")
    output = process.communicate()[0]
    assert process.returncode == 3, output
    ends = [e for found in events(run).values() for e in found if e["event"] in ("told", "failed")]
    lost = [e for e in ends if e["event"] == "failed"]
    assert len(ends) == 8 and len(lost) == 1
    assert "a worker died" in str(lost[0]["reason"])
