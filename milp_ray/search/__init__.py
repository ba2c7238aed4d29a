"""Multi-objective Bayesian optimisation of memory placements, as an ask/tell engine without Ray.

Importing this package is cheap: torch, BoTorch and JAX are imported by the first proposal that fits
a model, Ax by :mod:`milp_ray.search.ax.export` only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from milp_ray.config.objectives import Objective
    from milp_ray.search.core.plan import Plan
    from milp_ray.search.core.records import Candidates, Failure, Observation, Proposal
    from milp_ray.search.core.transfer_data import SourceTask, TransferData
    from milp_ray.search.engine import Engine
    from milp_ray.search.source_pool import SourcePool

__all__ = [
    "Candidates",
    "Engine",
    "Failure",
    "Objective",
    "Observation",
    "Plan",
    "Proposal",
    "SourcePool",
    "SourceTask",
    "TransferData",
]

_HOMES = {
    "Engine": "search.engine",
    "Objective": "config.objectives",
    "Plan": "search.core.plan",
    "Candidates": "search.core.records",
    "Failure": "search.core.records",
    "Observation": "search.core.records",
    "Proposal": "search.core.records",
    "SourceTask": "search.core.transfer_data",
    "TransferData": "search.core.transfer_data",
    "SourcePool": "search.source_pool",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"milp_ray.{_HOMES[name]}"), name)
