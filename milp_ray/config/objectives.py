"""Objectives: what a search optimises, what a study can name, and which value is the better one.

To add one that is measured: its declaration in :data:`OBJECTIVES`, and its metric in
:data:`milp_ray.evaluation.metrics.RESPONSE_METRICS`. One that follows from the placement needs its
declaration only, with the function that computes it.

Values stand in the user's own units everywhere outside the models; inside them everything is
maximised (:func:`maximized`). Checking values is *not* covered: see
:mod:`milp_ray.search.core.objectives`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from milp_ray.errors import SearchError


@dataclass(frozen=True)
class Objective:
    """One objective of a search.

    Example:
        >>> loss = Objective("loss", "min")
        >>> total_rank = lambda placement: 1.0 * sum(placement.as_dict().values())
        >>> size = Objective("size", "min", exact=total_rank)
        >>> maximized([loss, size], {"loss": 2.5, "size": 24.0})
        (-2.5, -24.0)
        >>> loss.best([2.5, 2.0, 2.25])
        2.0

    Attributes:
        name: key of its value in observations; a plain word of letters, digits and ``_``.
        direction: ``"min"`` or ``"max"``.
        exact: for an objective that follows from the placement alone (number of trainable
            parameters): the function that computes it, deterministic and finite for every non-empty
            placement. Such a value need not be told, is never modelled, and enters the acquisition
            as a deterministic model. In :data:`OBJECTIVES` it takes the base's architecture, too,
            which :func:`objectives_on` binds.
        label: what a plot's axis says.
        is_count: whether tables print its values as whole numbers.

    Raises:
        SearchError: the name is no plain word, or there is no such direction.
    """

    name: str
    direction: Literal["min", "max"]
    exact: Callable[..., float] | None = None
    label: str = ""
    is_count: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier() or not self.name.isascii():
            raise SearchError(
                "an objective's name is not a plain word",
                expected="letters, digits and '_', not starting with a digit, such as rouge_l",
            )
        if self.direction not in ("min", "max"):
            raise SearchError(f"objective {self.name} has no direction", expected="direction 'min' or 'max'")

    def maximized(self, value: float) -> float:
        """``value`` turned so that more is better; turned again it is in the user's units."""
        return (1.0 if self.direction == "max" else -1.0) * value

    def best(self, values: Iterable[float]) -> float:
        """The best of one or more values."""
        return max(values) if self.direction == "max" else min(values)


def maximized(objectives: Sequence[Objective], values: Mapping[str, float]) -> tuple[float, ...]:
    """``m`` values in the order of ``objectives``, turned so that more is better."""
    return tuple(objective.maximized(values[objective.name]) for objective in objectives)


def in_units(objectives: Sequence[Objective], values: Sequence[float]) -> dict[str, float]:
    """``m`` maximised values by name, in the user's units: what :func:`maximized` was given."""
    return {o.name: float(o.maximized(value)) for o, value in zip(objectives, values, strict=True)}


def _trainable_params(placement: Any, architecture: Any) -> float:
    return float(architecture.trainable_params(placement))


#: What ``objectives:`` of a study file can name.
OBJECTIVES: Mapping[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("loss", "min", label="validation loss (nats per token, lower is better)"),
        Objective("rouge_l", "max", label="validation ROUGE-L F1 (higher is better)"),
        Objective("chrf", "max", label="validation chrF (higher is better)"),
        Objective(
            "trainable_params",
            "min",
            _trainable_params,
            label="trainable parameters (fewer is better)",
            is_count=True,
        ),
    )
}


def objectives_on(architecture: object, names: Sequence[str]) -> tuple[Objective, ...]:
    """Declared objectives for searches on a base model of this architecture."""
    declared = [OBJECTIVES[name] for name in names]
    return tuple(
        o if o.exact is None else replace(o, exact=partial(o.exact, architecture=architecture))
        for o in declared
    )


def instead_of(constant: Sequence[str], names: Sequence[str]) -> str:
    """What to do about those of a study's objectives that are the same in every trial."""
    left = [name for name in names if name not in constant and not OBJECTIVES[name].exact] or ["loss"]
    ways = [f"objectives: [{', '.join(left)}]", f"[{', '.join([*left, 'trainable_params'])}]"]
    if "rouge_l" in constant and "chrf" not in names:
        ways.append(f"[{', '.join([*left, 'chrf'])}], as chrf counts parts of words, too")
    return "search by " + ", or ".join(ways)
