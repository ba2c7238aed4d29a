"""``multi_lora``: LoRA in every layer, one rank, no search: what one would do without this project.

Rank is ``memory.defaults.size``; stages, texts and learning-rate choice are those of every trained
method.
"""

from __future__ import annotations

from milp_ray.evaluation.baselines import register
from milp_ray.evaluation.baselines.contents import QueryAlone
from milp_ray.evaluation.baselines.interface import Bench, Method
from milp_ray.evaluation.baselines.sources import UserLora
from milp_ray.evaluation.baselines.training import everywhere


@register("multi_lora")
def multi_lora(bench: Bench) -> Method:
    """See the module."""
    source = UserLora(bench, "multi_lora", lambda _: everywhere(bench))
    return Method("multi_lora", bench, source, QueryAlone(bench))
