"""``milp+rag`` and ``task_lora+milp``: a memory together with what it competes with.

``milp+rag``: the memory of ``milp``, unchanged, and the prompts of ``rag``. The memory was trained
on queries alone, as it is served alone.

``task_lora+milp``: two LoRAs at once, that of ``task_lora`` and on top of it the user's placement,
trained with the first one frozen beneath. The ranks of both stand side by side in one product, so
nothing is approximated. It is trained here also where a finished run's memories are given, which
were trained on the bare base.
"""

from __future__ import annotations

from milp_ray.evaluation.baselines import register
from milp_ray.evaluation.baselines.contents import QueryAlone
from milp_ray.evaluation.baselines.interface import Bench, Method
from milp_ray.evaluation.baselines.milp import memories, placements
from milp_ray.evaluation.baselines.rag import retrieved_texts
from milp_ray.evaluation.baselines.sources import TaskLora, UserLora


@register("milp+rag")
def milp_rag(bench: Bench) -> Method:
    """See the module."""
    return Method("milp+rag", bench, memories(bench), retrieved_texts(bench))


@register("task_lora+milp")
def task_lora_milp(bench: Bench) -> Method:
    """See the module."""
    source = UserLora(bench, "task_lora_milp", placements(bench), on=TaskLora(bench))
    return Method("task_lora+milp", bench, source, QueryAlone(bench))
