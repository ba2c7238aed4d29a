"""A run at a URL moves from machine to machine: what one driver found, the next has. Without
Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from milp_ray.config import Study
from milp_ray.config.loading import load_study, resolved
from milp_ray.ids import new_key
from milp_ray.report.console import fronts_view
from milp_ray.report.plots import draw_run
from milp_ray.search import Engine
from milp_ray.storage import close_mirrors
from milp_ray.storage.objects import objects_at
from milp_ray.study.check import check_study
from milp_ray.study.fetch import fetch
from milp_ray.study.inputs import load_inputs
from milp_ray.study.location import run_location
from milp_ray.study.population import Population
from milp_ray.study.results import write_tables
from milp_ray.study.run_folder import RunFolder
from tests.study.conftest import CANARY, bare_model, user_line

TRIALS = 4


@pytest.fixture
def study(tmp_path: Path, s3: str) -> Study:
    """Two users whose texts are at a URL, too."""
    model = bare_model(tmp_path / "model")
    texts = "".join(f"{user_line(number)}\n" for number in range(2))
    objects_at(f"{s3}/data").put("users.jsonl", texts.encode())
    values = {
        "name": "moves",
        "model": {"path": str(model)},
        "data": {"path": f"{s3}/data/users.jsonl"},
        "search": {"trials": TRIALS, "initial": TRIALS, "batch": 2, "surrogate": "random"},
        "simulation": {},
        "storage": {"path": f"{s3}/runs"},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return resolved(load_study(path))


def searched(engines: Mapping[str, Engine]) -> None:
    for engine in engines.values():
        if engine.reference is None:
            engine.set_reference({"loss": 3.0, "rouge_l": 0.1})
        while engine.counts.asked < TRIALS:
            for proposal in engine.ask(2):
                engine.tell(proposal.id, {"loss": 2 + proposal.id / 10, "rouge_l": 0.2 + proposal.id / 20})


def test_two_machines_search_one_user_each(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_study(study)
    location = run_location(study)
    assert objects_at(location).list_below() == [], "a check writes nothing"
    key = new_key()
    inputs = load_inputs(study, key)
    folder = RunFolder.create(study, inputs.users.fingerprint, key)
    for machine in (1, 2):
        with folder.lock():
            population = Population(folder, inputs)
            assert sum(summary.over for _, summary in population.summaries()) == machine - 1
            with population.opened(population.aliases[:machine]) as engines:
                searched(engines)
            write_tables(folder, population, inputs.architecture)
        draw_run(folder)
        close_mirrors()
        monkeypatch.setenv("MILP_RAY_CACHE", str(tmp_path / str(machine)))
        folder = RunFolder.open(location)
        inputs = load_inputs(folder.study, folder.key, folder.fingerprint)
    console = Console(record=True, width=160)
    console.print(check_study(study))
    console.print(fronts_view(folder))
    printed = console.export_text()
    assert f"goes on with it: {2 * TRIALS} of {2 * TRIALS} trials ended" in printed
    assert all(f"front of {alias}" in printed for alias in inputs.users.splits)
    objects = objects_at(location)
    names = [found.name for found in objects.list_below()]
    for alias in inputs.users.splits:
        assert {f"events/{alias}.jsonl", f"experiments/{alias}.json", f"plots/front-{alias}.png"} < {*names}
    assert not any(CANARY in name or CANARY.encode() in objects.get(name) for name in names)
    copied = len([name for name in names if name.startswith(("tables/", "plots/"))])
    assert fetch(location, tmp_path / "copies") == copied
