"""What a study can optimise: one declaration per objective, from which everything else follows.

To add one: a line here, and its measurement in :mod:`milp_ray.trial.trial` (or, where it follows from the
placement alone, in :func:`milp_ray.study.inputs.objectives_of`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Declared:
    """An objective.

    Attributes:
        direction: which values are better.
        label: what a plot's axis says.
        exact: follows from the placement without a trial, and is never modelled.
    """

    direction: Literal["min", "max"]
    label: str
    exact: bool = False

    @property
    def sign(self) -> float:
        """By which a value is multiplied so that more is better."""
        return 1.0 if self.direction == "max" else -1.0


OBJECTIVES: Mapping[str, Declared] = {
    "loss": Declared("min", "validation loss (nats per token, lower is better)"),
    "rouge_l": Declared("max", "validation ROUGE-L F1 (higher is better)"),
    "chrf": Declared("max", "validation chrF (higher is better)"),
    "trainable_params": Declared("min", "trainable parameters (fewer is better)", exact=True),
}


def instead_of(constant: Sequence[str], names: Sequence[str]) -> str:
    """What to do about objectives that are the same in every trial, of a study's objectives ``names``."""
    left = [name for name in names if name not in constant and not OBJECTIVES[name].exact] or ["loss"]
    ways = [f"objectives: [{', '.join(left)}]", f"[{', '.join([*left, 'trainable_params'])}]"]
    if "rouge_l" in constant and "chrf" not in names:
        ways.append(f"[{', '.join([*left, 'chrf'])}], as chrf counts parts of words, too")
    return "search by " + ", or ".join(ways)


def gains_of(values: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    """The values of these objectives, each so that more is better."""
    return tuple(OBJECTIVES[name].sign * float(values[name]) for name in names)
