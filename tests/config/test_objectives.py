"""Every declared objective can be named in a study, is measured, and is drawn and compared the
right way."""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace
from typing import get_args

import pytest

from milp_ray.config.models import ObjectiveName
from milp_ray.config.objectives import OBJECTIVES, Objective, in_units, maximized, objectives_on
from milp_ray.errors import SearchError
from milp_ray.evaluation.metrics import RESPONSE_METRICS
from milp_ray.memory.architectures import architecture_of
from milp_ray.memory.placement import Placement

LOSS, ROUGE = Objective("loss", "min"), Objective("rouge_l", "max")


def test_every_declared_objective_is_measured_or_exact() -> None:
    assert set(get_args(ObjectiveName)) == set(OBJECTIVES)
    measured = {name for name, declared in OBJECTIVES.items() if declared.exact is None}
    assert measured == {"loss", *RESPONSE_METRICS}
    assert all(declared.label for declared in OBJECTIVES.values())
    assert all(name == declared.name for name, declared in OBJECTIVES.items())


def test_maximized_values_are_turned_so_that_more_is_better() -> None:
    values = {"loss": 2.0, "rouge_l": 0.2, "trainable_params": 100.0}
    assert maximized((ROUGE, LOSS), values) == (0.2, -2.0)
    assert maximized([OBJECTIVES["trainable_params"]], values) == (-100.0,)
    assert in_units((ROUGE, LOSS), (0.2, -2.0)) == {"rouge_l": 0.2, "loss": 2.0}
    assert (LOSS.best([2.0, 1.5]), ROUGE.best([0.1, 0.2])) == (1.5, 0.2)
    assert math.isnan(LOSS.maximized(math.nan))


def test_an_exact_objective_is_computed_on_the_studys_base() -> None:
    config = SimpleNamespace(
        model_type="llama", num_hidden_layers=4, hidden_size=32, intermediate_size=64,
        vocab_size=99, max_position_embeddings=512,
    )  # fmt: skip
    architecture = architecture_of(config)
    loss, size = objectives_on(architecture, ("loss", "trainable_params"))
    placement = Placement(((1, 4),))
    assert loss.exact is None and size.exact is not None
    assert size.exact(placement) == architecture.trainable_params(placement)
    assert pickle.loads(pickle.dumps(size)).exact(placement) == size.exact(placement)  # plans pickle


@pytest.mark.parametrize("name", ["", "rouge-l", "1st", "a b", "größe", "-x"])
def test_a_name_must_be_a_plain_word(name: str) -> None:
    with pytest.raises(SearchError, match="plain word"):
        Objective(name, "min")


def test_a_direction_must_be_min_or_max() -> None:
    with pytest.raises(SearchError, match="direction"):
        Objective("loss", "down")  # type: ignore[arg-type]
