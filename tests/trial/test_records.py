"""Requests and reports come through Ray Tune's plain values as they were."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from milp_ray.errors import ClusterError
from milp_ray.memory.placement import Placement
from milp_ray.trial.records import BASELINE, TrialCost, TrialReport, TrialRequest, TrialState

COST = TrialCost(1.5, 0.25, 0.125, 900, 5 << 30, "0a1b2c3d", 2)


@pytest.mark.parametrize(("number", "key"), [(7, "0:4,3:16"), (BASELINE, "")])
def test_a_request_is_the_config_of_its_trial(number: int, key: str) -> None:
    request = TrialRequest("u-a", number, Placement.from_key(key), "gp")
    config = json.loads(json.dumps(request.to_config()))
    assert config == {"user": "u-a", "trial": number, "placement": key}, "nothing else is written by Tune"
    assert TrialRequest.from_config(config) == replace(request, source="")
    assert request.is_baseline == (number == BASELINE)


@pytest.mark.parametrize(
    "report",
    [
        TrialReport.running("inject"),
        TrialReport.complete({"loss": 0.1 + 0.2, "trainable_params": 1824}, COST),
        TrialReport.complete({"loss": 2.0}),
        TrialReport.complete({"loss": 2.0}, COST, {"u-a": {"loss": 1.0}, "u-b": {"loss": 3.0}}),
        TrialReport.failed("out of memory", COST, alone=True),
    ],
)
def test_a_report_comes_back_as_it_was(report: TrialReport) -> None:
    result = json.loads(json.dumps(report.to_result()))
    assert TrialReport.from_result(result) == report
    assert result["done"] == report.is_over == (report.state is not TrialState.RUNNING)


def test_errors_travel_in_reports() -> None:
    error = ClusterError("a worker cannot use its GPU", remedy="wait")
    lost = TrialReport.from_result(TrialReport.lost(error, "10.0.0.7").to_result())
    assert lost.state is TrialState.LOST and lost.node == "10.0.0.7" and not lost.is_over
    fatal = TrialReport.from_result(TrialReport.fatal(error).to_result())
    assert fatal.state is TrialState.FAILED and fatal.is_over
    assert str(lost.error) == str(fatal.error) == str(error)
    assert isinstance(fatal.error, ClusterError)


def test_a_measurement_that_is_no_number_is_still_one_afterwards() -> None:
    values = TrialReport.from_result(TrialReport.complete({"loss": math.nan}).to_result()).values
    assert math.isnan(values["loss"])


def test_a_result_of_tunes_own_says_that_the_trial_runs() -> None:
    assert TrialReport.from_result({"training_iteration": 0}).state is TrialState.RUNNING


def test_a_cost_is_plain_and_what_a_later_version_adds_is_left_out() -> None:
    plain = COST.to_plain()
    assert json.loads(json.dumps(plain)) == plain and TrialCost.from_plain(plain) == COST
    assert TrialCost.from_plain({**plain, "watts": 300}) == COST
    assert replace(COST, inject_seconds=1 / 3).to_plain()["inject_seconds"] == 0.3333
    with pytest.raises(ValueError, match="could not convert"):
        TrialCost.from_plain({"inject_seconds": "long"})
