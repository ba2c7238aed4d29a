"""``tplp``: a text prompt with the profile and the newest texts that fit.

The paper names it and no more (docs/references.md: Zhang 2024, section 3.2). Chosen here: the
profile first; then history texts, oldest first, as many of the newest as the context holds beside
the query and the response. Nothing is trained.
"""

from __future__ import annotations

from milp_ray.data.records import Sample, UserSplit
from milp_ray.evaluation.baselines import register
from milp_ray.evaluation.baselines.contents import Chosen, TextsBefore, profile_lines, texts_before
from milp_ray.evaluation.baselines.interface import Bench, Method
from milp_ray.evaluation.baselines.sources import Nothing


@register("tplp")
def tplp(bench: Bench) -> Method:
    """See the module."""
    return Method("tplp", bench, Nothing(), TextsBefore(bench, newest, skip=False))


def newest(user: UserSplit, sample: Sample) -> Chosen:
    """The profile and all earlier texts, newest first."""
    return Chosen(profile_lines(user), texts_before(user, sample)[::-1])
