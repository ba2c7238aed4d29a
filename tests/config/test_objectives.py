"""Every declared objective can be named in a study, is measured, and is drawn and compared the
right way."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

from milp_ray.config.models import ObjectiveName
from milp_ray.config.objectives import OBJECTIVES, gains_of
from milp_ray.trial.trial import Measurement


def test_studies_and_measurements_know_the_declared_objectives() -> None:
    assert set(get_args(ObjectiveName)) == set(OBJECTIVES)
    assert set(OBJECTIVES) <= {field.name for field in fields(Measurement)}
    assert all(declared.label for declared in OBJECTIVES.values())


def test_more_is_better_among_gains() -> None:
    values = {"loss": 2.0, "rouge_l": 0.2, "trainable_params": 100.0}
    assert gains_of(values, ("rouge_l", "loss")) == (0.2, -2.0)
    assert gains_of(values, ("trainable_params",)) == (-100.0,)
