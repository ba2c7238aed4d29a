"""``ax:fast`` and ``ax:quality``: Ax's own generators, for comparison with ours.

Through Ax's public client only: the search so far is attached to a fresh client, which then
proposes. Ax sees gates, n and r as plain parameters, knows nothing of placements, and may propose
one that was seen before; what it repeats is asked for again, and what stays missing comes from the
space-filling design, with a note.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from milp_ray.errors import StorageError
from milp_ray.search.core.records import Candidates
from milp_ray.search.surrogates import register

if TYPE_CHECKING:
    from milp_ray.memory.factors import MemoryConfig
    from milp_ray.search.core.plan import Plan

_TRIES = 3  # rounds of asking Ax for what is missing


@lru_cache(maxsize=1)
def _ready() -> None:
    """Build BoTorch's C++ extension, which Ax's generators use, under our lock.

    Without it, Ax's first proposal would build it, or wait for ever for a build that was killed.
    """
    from milp_ray.search.warm_up import warm_up

    with suppress(StorageError):  # without a cache folder BoTorch builds it where it likes
        warm_up(extension=True)


class AxGenerator:
    """Proposals by Ax's generation strategy of one ``method``."""

    method: Literal["fast", "quality"] = "fast"

    def candidates(self, plan: Plan) -> Candidates:
        """See :class:`~milp_ray.search.surrogates.base.PlanSampler`."""
        from milp_ray.search.ax.export import client_of_plan, config_of
        from milp_ray.search.core.design import Design

        _ready()
        client = client_of_plan(plan, self.method)
        taken = {*plan.seen, ""}
        chosen: list[MemoryConfig] = []
        for _ in range(_TRIES):
            missing = plan.count - len(chosen)
            if missing <= 0:
                break
            for parameters in client.get_next_trials(max_trials=missing).values():
                config = config_of(plan.space, parameters)
                key = plan.space.placement(config).key
                if key not in taken:
                    taken.add(key)
                    chosen.append(config)
        rest = Design(plan.space, plan.seed).first(plan.count - len(chosen), taken)
        source = f"ax:{self.method}"
        notes = [f"{source} repeated itself; {len(rest)} proposals are space-filling"] if rest else []
        return Candidates([*chosen, *rest], source, notes)


@register("ax:fast")
class AxFast(AxGenerator):
    """Ax's default generators."""


@register("ax:quality")
class AxQuality(AxGenerator):
    """Ax's slower generators (fully Bayesian models where Ax finds them fit)."""

    method: Literal["fast", "quality"] = "quality"
