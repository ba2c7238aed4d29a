"""``none``: the base itself, and the query alone. What every other method is measured against."""

from __future__ import annotations

from milp_ray.evaluation.baselines import register
from milp_ray.evaluation.baselines.contents import QueryAlone
from milp_ray.evaluation.baselines.interface import Bench, Method
from milp_ray.evaluation.baselines.sources import Nothing


@register("none")
def none(bench: Bench) -> Method:
    """See the module."""
    return Method("none", bench, Nothing(), QueryAlone(bench))
