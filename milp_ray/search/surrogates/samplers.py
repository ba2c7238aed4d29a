"""Samplers, ``random`` and ``sobol``: yardsticks, and what is left when no model fits."""

from __future__ import annotations

import random
from collections.abc import Collection

from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.space import MemorySpace
from milp_ray.search.core.design import Design
from milp_ray.search.surrogates import register

_TRIES = 1000  # draws without a new placement before the space is looked through in order


@register("random")
class Random:
    """Independent draws from the space, those seen before drawn again."""

    def configs(self, space: MemorySpace, seen: Collection[str], count: int, seed: int) -> list[MemoryConfig]:
        """See :class:`~milp_ray.search.surrogates.base.Sampler`."""
        generator = random.Random(seed)
        taken, result = {*seen, ""}, list[MemoryConfig]()
        tries = 0
        while len(result) < count and tries < _TRIES:
            config = space.sample(generator)
            key = space.placement(config).key
            if key in taken:
                tries += 1
                continue
            taken.add(key)
            result.append(config)
            tries = 0
        return result + Design(space, seed).first(count - len(result), taken)


@register("sobol")
class Sobol:
    """Points of a scrambled Sobol sequence.

    Every batch is scrambled anew, as the sequence of the initial design has been used already.
    """

    def configs(self, space: MemorySpace, seen: Collection[str], count: int, seed: int) -> list[MemoryConfig]:
        """See :class:`~milp_ray.search.surrogates.base.Sampler`."""
        return Design(space, seed).first(count, {*seen, ""})
