"""``oppu``: the adapter of all first, then one per user on top of it.

As in its paper (docs/references.md: Tan 2024): the task LoRA is trained on background users, then
frozen beneath the user's own. Chosen here, so that it can be compared: the user's LoRA is that of
``multi_lora`` (feed-forward modules of every layer; the paper: rank 8 on q and v), and its texts,
schedule and learning-rate choice are those of every trained method. The task LoRA stays a LoRA,
whose ranks stand beside the user's; merging it into the base, as the paper does, is the same
function.

The released code trains each user on the texts of all users before, since it empties its list of
training data once and not per user. Here a user's adapter depends on no other measured user: a test
trains two.
"""

from __future__ import annotations

from milp_ray.evaluation.baselines import register
from milp_ray.evaluation.baselines.contents import QueryAlone
from milp_ray.evaluation.baselines.interface import Bench, Method
from milp_ray.evaluation.baselines.sources import TaskLora, UserLora
from milp_ray.evaluation.baselines.training import everywhere


@register("oppu")
def oppu(bench: Bench) -> Method:
    """See the module."""
    source = UserLora(bench, "oppu", lambda _: everywhere(bench), on=TaskLora(bench))
    return Method("oppu", bench, source, QueryAlone(bench))
