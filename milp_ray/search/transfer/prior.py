"""What finished users' fronts say about where a next user's memory may belong, as a distribution.

Layer by layer the share of front placements that use it, with half a placement for and half against
added (Jeffreys' Beta prior); rank and LoRAs per layer are those of a front placement or, with a
weight of a few placements, uniform (the predictive distribution of a Dirichlet process). As a
mixture with the space's own uniform draw nothing has probability 0. Which draws are worth a trial
is *not* covered.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.space import MemorySpace

_HALF = 0.5
_UNIFORM = 4.0  # placements that the uniform distribution of ranks and counts is worth


class PlacementPrior:
    """A distribution over configurations.

    Args:
        space: of the configurations.
        fronts: per source its front; a source counts as one, however long its front is.
        weights: of the sources, at least 0; None: all alike.
        share: of the draws that come from the space's uniform distribution.
    """

    def __init__(
        self,
        space: MemorySpace,
        fronts: Sequence[Sequence[MemoryConfig]],
        weights: Sequence[float] | None = None,
        share: float = 0.25,
    ) -> None:
        self._space, self._share = space, share
        given = [1.0] * len(fronts) if weights is None else list(weights)
        used = [(f, w) for f, w in zip(fronts, given, strict=True) if f and w > 0]
        self._points = [config for front, _ in used for config in front]
        self._masses = [weight / len(front) for front, weight in used for _ in front]
        self._total = sum(self._masses)
        self.layers = self._activity()

    def sample(self, rng: random.Random) -> MemoryConfig:
        """A configuration of the space, with at least one active layer and n ≥ 1."""
        base = self._space.sample(rng)
        if not self._points or rng.random() < self._share:
            return base
        gates, num, rank, settings = base.gates, base.num_loras, base.rank, base.settings
        if self._space.layer_gates.searched:
            gates = tuple(rng.random() < share for share in self.layers)
            if not any(gates):
                best = max(self.layers)
                gates = tuple(share == best for share in self.layers)
        active = sum(gates)
        if rng.random() * (self._total + _UNIFORM) >= _UNIFORM:
            like = rng.choices(self._points, self._masses)[0]
            rank, settings = like.rank, like.settings
            each = max(1.0, like.num_loras / max(1, len(like.active)))
            num = min(max(1, round(each * active)), self._space.max_loras)
        return self._space.lora_count.following(MemoryConfig(gates, num, rank, settings))

    def _activity(self) -> list[float]:
        """Per layer the probability that it is used."""
        counts = [_HALF] * self._space.num_layers
        for config, mass in zip(self._points, self._masses, strict=True):
            for layer, _ in self._space.placement(config).ranks:
                counts[layer] += mass
        return [count / (self._total + 2 * _HALF) for count in counts]
