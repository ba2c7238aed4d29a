"""Simulated trials: the synthetic user's values, a stable share of failures, stops in slices."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from milp_ray.config.models import DataSettings, ModelSettings, SimulationSettings, Study, TrialSettings
from milp_ray.memory.architectures import architecture_of
from milp_ray.memory.placement import Placement
from milp_ray.trial.records import BASELINE, TrialReport, TrialState
from milp_ray.tune.search.simulated import SimulatedSpec, SimulatedTrial

PLACEMENT = Placement(((0, 8), (3, 16)))


def spec_of(seconds: float = 0.0, failures: float = 0.0) -> SimulatedSpec:
    config = SimpleNamespace(
        model_type="llama", num_hidden_layers=8, hidden_size=64, intermediate_size=128,
        vocab_size=99, max_position_embeddings=512,
    )  # fmt: skip
    study = Study(
        name="x",
        model=ModelSettings(path="x"),
        data=DataSettings(path="x"),
        trial=TrialSettings(slice_seconds=0.1),
        simulation=SimulationSettings(seconds=seconds, failures=failures),
    )
    return SimulatedSpec(study, architecture_of(config), {"a": 0, "b": 1})


def config_of(alias: str = "a", trial: int = 0, placement: Placement = PLACEMENT) -> dict[str, object]:
    return {"user": alias, "trial": trial, "placement": placement.key}


def trial_of(spec: SimulatedSpec, config: dict[str, object]) -> SimulatedTrial:
    trial: SimulatedTrial = SimulatedTrial.__new__(SimulatedTrial)  # without Tune's own set-up
    trial.setup(config, spec)
    return trial


def test_values_are_those_of_the_users_own_problem() -> None:
    spec = spec_of()
    trial = trial_of(spec, config_of())
    result = trial.step()
    report, first = TrialReport.from_result(result), TrialReport.from_result(result).values
    assert report.state is TrialState.COMPLETE and result["done"]
    assert {k: first[k] for k in ("loss", "rouge_l")} == spec.problem("a").measure(PLACEMENT)
    assert first["trainable_params"] == spec.architecture.trainable_params(PLACEMENT)
    assert trial.reset_config(config_of("b"))
    assert trial.step()["loss"] != first["loss"]
    assert trial.reset_config(config_of(trial=BASELINE, placement=Placement(())))
    assert trial.step()["loss"] == pytest.approx(2.6)


def test_the_share_that_fails_is_the_same_every_time_and_spares_the_baseline() -> None:
    spec = spec_of(failures=0.25)
    failing = [number for number in range(400) if spec.fails("a", number)]
    assert 60 < len(failing) < 140
    assert failing == [number for number in range(400) if spec_of(failures=0.25).fails("a", number)]
    assert not spec_of(failures=1.0).fails("a", BASELINE) and spec_of(failures=1.0).fails("a", 0)
    assert (
        TrialReport.from_result(trial_of(spec, config_of(trial=failing[0])).step()).reason
        == "simulated failure"
    )


def test_a_long_trial_comes_up_between_slices() -> None:
    trial = trial_of(spec_of(seconds=0.25), config_of())
    began = time.monotonic()
    steps = [trial.step()]
    while not TrialReport.from_result(steps[-1]).is_over:
        steps.append(trial.step())
    assert len(steps) == 3 and 0.25 <= time.monotonic() - began < 2
