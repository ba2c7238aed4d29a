"""Whose texts are in Ray's object store: those of the users that are worked on, and for no
longer."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from milp_ray.study.run import Run
from milp_ray.study.stopping import StopRequest
from milp_ray.tune.final.coordinator import FinalSpec
from milp_ray.tune.workers.trial_spec import TrialSpec
from tests.study.test_population import ALIASES, population_of, search


def run_of(root: Path) -> Run:
    _, folder, inputs = population_of(root)
    return Run(folder, inputs, Console(file=io.StringIO()))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was put there, without a Ray."""
    found: list[object] = []
    monkeypatch.setattr("ray.put", lambda value: found.append(value) or len(found))
    return found


def test_a_cohorts_trials_share_the_cohorts_texts(tmp_path: Path, store: list[object]) -> None:
    spec = run_of(tmp_path)._spec(ALIASES[1:3])
    assert isinstance(spec, TrialSpec) and list(spec.units) == list(ALIASES[1:3]) and len(store) == 2
    assert spec.layout.root == tmp_path


def test_the_final_job_shares_what_it_has_to_train_or_test(
    tmp_path: Path, store: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    population = population_of(tmp_path)[0]
    for alias in ALIASES[:4]:
        search(population, alias, 3)
    run, made = run_of(tmp_path), list[FinalSpec]()
    for alias in ALIASES[:2]:  # the first is done, the second trained only
        run.folder.layout.memory(alias).mkdir(parents=True)
        (run.folder.layout.memory(alias) / "adapter_config.json").touch()
    run.folder.layout.scores(ALIASES[0]).parent.mkdir()
    run.folder.layout.scores(ALIASES[0]).touch()

    def run_final(spec: FinalSpec, *_: Callable[..., Any]) -> None:
        made.append(spec)

    monkeypatch.setattr("milp_ray.tune.final.run.run_final", run_final)
    run._final(StopRequest())
    assert list(made[0].users) == list(ALIASES[1:4]) and list(made[0].placements) == list(ALIASES[:4])
