from __future__ import annotations

import numpy as np
import pytest
import torch

from milp_ray.errors import SearchError
from milp_ray.memory.placement import Placement
from milp_ray.search import Objective
from milp_ray.search.core.objectives import checked_objectives, checked_values, exact_values

LOSS, ROUGE = Objective("loss", "min"), Objective("rouge_l", "max")
SIZE = Objective("size", "min", exact=lambda placement: 10.0 * len(placement))


@pytest.mark.parametrize("objectives", [(), (LOSS, LOSS), (SIZE,)])
def test_objectives_must_be_distinct_and_one_measured(objectives: tuple[Objective, ...]) -> None:
    with pytest.raises(SearchError):
        checked_objectives(objectives)


def test_values_are_completed_by_the_exact_ones_in_order() -> None:
    exact = exact_values((SIZE, LOSS), Placement(((0, 8), (2, 8))))
    assert list(checked_values((SIZE, LOSS), {"loss": 2}, exact).items()) == [("size", 20.0), ("loss", 2.0)]
    assert checked_values((SIZE, LOSS), {"loss": 2, "size": 20.0}, exact)["size"] == 20.0
    with pytest.raises(SearchError, match="by its definition"):
        checked_values((SIZE, LOSS), {"loss": 2, "size": 30.0}, exact)


@pytest.mark.parametrize("value", [np.float32(2.5), np.float64(2.5), np.int64(2), torch.tensor(2.5), 2])
def test_numbers_of_other_libraries_are_numbers(value: float) -> None:
    told = checked_values((LOSS,), {"loss": value}, {})
    assert type(told["loss"]) is float
    assert told["loss"] == float(value)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), -float("inf"), True, np.bool_(True), "2.0", None, [1.0], 10**400, 1j],
    ids=repr,
)
def test_what_is_no_finite_number_is_refused(value: object) -> None:
    with pytest.raises(SearchError, match="finite number"):
        checked_values((LOSS,), {"loss": value}, {})  # type: ignore[dict-item]


def test_missing_and_unknown_names_are_refused_without_quoting_them() -> None:
    with pytest.raises(SearchError, match="no value for rouge_l") as error:
        checked_values((LOSS, ROUGE), {"loss": 1.0, "my secret": 2.0}, {})
    assert "secret" not in str(error.value)
    with pytest.raises(SearchError, match="by name"):
        checked_values((LOSS,), [1.0], {})  # type: ignore[arg-type]


def test_an_exact_objective_must_be_finite() -> None:
    broken = Objective("size", "min", exact=lambda placement: float("nan"))
    with pytest.raises(SearchError, match="exact objective size"):
        exact_values((broken,), Placement(((0, 8),)))
