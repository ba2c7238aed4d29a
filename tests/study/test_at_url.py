"""Whole studies whose run is at a URL, on an S3 server; nothing of them is on a shared file
system."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from milp_ray.storage import close_mirrors
from milp_ray.storage.objects import Objects, objects_at
from tests.study.conftest import CANARY, Start, call
from tests.study.test_end_to_end import wait_for
from tests.study.test_nodes import Nodes, make_nodes  # noqa: F401  (a fixture)

pytestmark = pytest.mark.slow
TRIALS = 6
EVERY = 0.5  # a look at a bucket costs more than one at a folder


@pytest.fixture
def run(s3: str) -> str:
    """Where the study's run will be."""
    return f"{s3}/deep/runs/small"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """From now on processes are started as on another machine: what they keep is in another
    folder."""

    def move(name: str) -> Path:
        monkeypatch.setenv("MILP_RAY_CACHE", str(tmp_path / name))
        return tmp_path / name / "twins"

    return move


def told(objects: Objects) -> list[tuple[str, int]]:
    found = []
    for name in [found.name for found in objects.list_below("events")]:
        events = [json.loads(line) for line in objects.get(name).splitlines()]
        found += [(Path(name).stem, event["id"]) for event in events if event["event"] == "told"]
    return sorted(found)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output = process.communicate(timeout=280)[0]
    assert process.returncode == code, output
    return output


def called(*words: str, code: int = 0) -> str:
    found, output = call(*words)
    assert found == code, output
    return output


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_killed_and_resumed_on_another_machine_to_the_end(
    study_file: Path, start: Start, run: str, machine: Callable[[str], Path], tmp_path: Path
) -> None:
    storage, objects = f"storage.path={run.rpartition('/')[0]}", objects_at(run)
    first = machine("first")
    process = start("search", str(study_file), storage, f"search.trials={TRIALS}", "trial.epochs=4")
    wait_for(lambda: len(told(objects)) >= 4, process, every=EVERY)
    process.send_signal(signal.SIGSTOP)  # its lease is good for two minutes yet
    refused = finish(start("resume", run), 1)
    assert "another milp-ray is working on this run" in refused and f"process {process.pid}" in refused
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = told(objects)
    assert len(before) < 2 * TRIALS, "the kill came too late to mean anything"

    second = machine("second")
    output = finish(start("resume", run))
    aliases = sorted({alias for alias, _ in told(objects)})
    assert len(aliases) == 2
    assert told(objects) == [(alias, number) for alias in aliases for number in range(TRIALS)]
    assert set(before) <= set(told(objects)) and f"run folder: {run}" in output
    assert list(first.glob("*/driver")), "what the killed driver may not have uploaded stays on its machine"
    assert not list(second.glob("*/driver")), "the resumed one has not brought everything to the URL"

    names = [found.name for found in objects.list_below()]
    for alias in aliases:
        assert {
            f"memories/{alias}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")
        } < {*names}
        assert f"scores/{alias}.json" in names and f"plots/front-{alias}.png" in names
        assert f"experiments/{alias}.json" in names
    assert not [name for name in names if name.startswith(("checkpoints/", "lease/by-"))]
    assert not any(CANARY in name or CANARY.encode() in objects.get(name) for name in names)
    assert CANARY not in output

    assert "front of u-" in called("fronts", run)
    assert "test scores" in called("show", run, "../../zanzibarcanary")
    copies = tmp_path / "copies"
    assert str(copies) in called("fetch", run, str(copies), "--memories")
    trials = pd.read_parquet(copies / "tables" / "trials.parquet")
    assert (trials.state == "done").sum() == 2 * TRIALS
    on_front = trials[trials.on_front]
    saved = {tuple(name.split("/")[1:3]) for name in names if name.startswith("adapters/")}
    assert {(row.user, f"t{row.trial:04d}") for row in on_front.itertuples()} == saved
    assert len(list((copies / "memories").iterdir())) == 2
    assert run in called("experiment", run, aliases[0])
    assert "milp-ray resume" in called("search", str(study_file), storage, code=2)
    close_mirrors()  # of this process
    assert f"run folder: {run}" in finish(start("resume", run))  # tabulates again
    assert "front of u-" in finish(start("fronts", run))
    assert not list(second.iterdir()), "the mirrors of ended workers are still there"


def test_a_bucket_that_is_missing_ends_the_run_before_it_begins(
    study_file: Path, start: Start, s3: str, machine: Callable[[str], Path]
) -> None:
    machine("first")
    process = start("search", str(study_file), "storage.path=s3://no-such-bucket-at-all/runs")
    output = finish(process, 1)
    assert "make the bucket first" in output and "Traceback" not in output


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_groups_of_workers_on_several_nodes(
    study_file: Path,
    start: Start,
    run: str,
    machine: Callable[[str], Path],
    make_nodes: Callable[..., Nodes],  # noqa: F811
) -> None:
    machine("cluster")
    nodes = make_nodes(1, 1)
    objects = objects_at(run)
    settings = [
        f"storage.path={run.rpartition('/')[0]}",
        f"ray.address={nodes.address}",
        "ray.workers_per_trial=2",
        "ray.parallelism=ddp",
        "search.surrogate=random",
        "search.trials=2",
        "search.initial=2",
        "final.epochs=40",
        "final.checkpoint_steps=20",
    ]
    process = start("search", str(study_file), *settings)
    wait_for(
        lambda: any(f.name.startswith("checkpoints/") for f in objects.list_below()),
        process,
        280,
        every=EVERY,
    )
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130, output
    names = [found.name for found in objects.list_below()]
    assert any(name.endswith("/state.json") for name in names)
    assert any(name.endswith("/rank-1.safetensors") for name in names)
    assert len(told(objects)) == 4

    finish(start("resume", run))
    names = [found.name for found in objects.list_below()]
    assert sum(name.startswith("scores/") for name in names) == 2
    assert not [name for name in names if name.startswith("checkpoints/")]
