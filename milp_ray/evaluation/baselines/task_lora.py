"""``task_lora``: one adapter for everybody, trained on background users' samples.

What a person's own adapter adds can only be told against this: LaMP's readers ask for it
(docs/references.md: Salemi 2024), and OPPU begins with it (Tan 2024).
"""

from __future__ import annotations

from milp_ray.evaluation.baselines import register
from milp_ray.evaluation.baselines.contents import QueryAlone
from milp_ray.evaluation.baselines.interface import Bench, Method
from milp_ray.evaluation.baselines.sources import TaskLora


@register("task_lora")
def task_lora(bench: Bench) -> Method:
    """See the module."""
    return Method("task_lora", bench, TaskLora(bench), QueryAlone(bench))
