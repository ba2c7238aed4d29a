"""A population's run on a real Ray: groups of two ranks, killed in the search and the final job."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pandas as pd
import pytest
import yaml

from milp_ray.config.models import ModelSettings
from milp_ray.ids import POPULATION
from milp_ray.memory.placement import Placement
from milp_ray.model.base import load_base
from milp_ray.study.inputs import load_inputs
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.units import units_of
from tests.study.conftest import Start, user_line
from tests.study.test_end_to_end import events, told, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
TRIALS = 4


def by_user(study_file: Path) -> Path:
    """The study with ten users of two samples each, divided; returns where its run will be."""
    study = yaml.safe_load(study_file.read_text())
    study["data"]["split"] = {"regime": "by_user"}
    study["trial"] |= {"stages": ["inject", "instruct"], "epochs": 3}
    study["search"] |= {"trials": TRIALS, "initial": TRIALS, "surrogate": "random"}
    study_file.write_text(yaml.safe_dump(study))
    lines = [user_line(number, samples=2) for number in range(10)]
    Path(study["data"]["path"]).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return study_file.parent / "runs" / "small"


@pytest.mark.nightly
def test_groups_of_two_search_a_population_and_go_on_where_they_were_killed(
    study_file: Path, start: Start
) -> None:
    run = by_user(study_file)
    words = ["ray.workers_per_trial=2", "ray.parallelism=ddp", "ray.cpus_per_worker=0.5"]
    process = start("search", str(study_file), *words)
    wait_for(lambda: len(told(run)) >= 2, process, 600, every=0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = told(run)
    assert len(before) < TRIALS, "the kill came too late to mean anything"

    process = start("resume", str(run))
    wait_for(
        lambda: (run / "memories" / POPULATION / "adapter_config.json").exists(), process, 600, every=0.01
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "scores").exists(), "the kill came too late to mean anything"
    shared = (run / "memories" / POPULATION / "adapter_model.safetensors").stat().st_mtime_ns

    process = start("resume", str(run))
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert "users: 2 of 2 have a memory" in output and "failed trials: 0" in output
    assert (run / "memories" / POPULATION / "adapter_model.safetensors").stat().st_mtime_ns == shared
    assert list(events(run)) == [POPULATION] and told(run)[: len(before)] == before
    assert sorted(told(run)) == [(POPULATION, number) for number in range(TRIALS)]
    assert len(list((run / "scores").iterdir())) == 2
    trials = pd.read_parquet(run / "tables" / "trials.parquet").set_index("trial")
    trained = trials.loc[range(TRIALS)]
    assert (trained.inject_seconds > 0).all() and (trained.instruct_seconds > 0).all()
    check_values(run)


def check_values(run: Path) -> None:
    """Values of two ranks are those of a single process."""
    folder = RunFolder.open(run).pinned()
    inputs = load_inputs(folder.study, folder.key, folder.fingerprint, folder.base)
    unit = units_of(folder.study, inputs.users).unit(POPULATION)
    found = events(run)[POPULATION]
    asked = {p["id"]: p for event in found if event["event"] == "asked" for p in event["proposals"]}  # type: ignore[attr-defined]
    first = next(event for event in found if event["event"] == "told")
    placement = Placement.from_key(str(asked[first["id"]]["placement"]))
    model = ModelSettings(path=folder.study.model.path, device="cpu")
    trial = unit.trial(load_base(model), placement, folder.study, seed=folder.study.seed)
    for _ in trial.steps():
        pass
    assert trial.result is not None
    values = json.loads(json.dumps(first["values"]))
    assert values["loss"] == pytest.approx(trial.result.loss, abs=1e-4)
