"""Synthetic placement problems: a formula for what a trial measures, for tests and dry runs.

Shaped after what trials on real models showed (docs/findings.md) and what the paper reports: few
*strong* layers carry the gain, some layers are *harmful*, neighbours *interact*, a layer needs some
rank before it does anything and is saturated later, and past some size more capacity hurts. Loss
and ROUGE-L agree on part of this and conflict on the rest. Measurements carry noise of a few
percent of the spread.

Users may be *related*: each mixes a family's layer weights with its own, so that transfer between
users can be measured on problems whose kinship is known. No claim is made that a real model follows
this formula.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from milp_ray.config.objectives import Objective, maximized
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.placement import NO_MEMORY, Placement
from milp_ray.memory.space import MemorySpace
from milp_ray.search.core.pareto import non_dominated

OBJECTIVES = (Objective("loss", "min"), Objective("rouge_l", "max"))
RANKS = (8, 16, 32, 64, 96)

_STRONG, _HARMFUL = 0.2, 0.25  # share of the layers
# Between no memory and the best: about what real users show, in nats per token and in ROUGE-L.
_LOSS_REACH, _ROUGE_REACH = 0.35, 0.12
_SHARED = 0.5  # share of ROUGE-L's weights that are those of the loss


@dataclass(frozen=True)
class _Weights:
    """How the layers act on one objective: per layer, per pair of layers, and in rank."""

    layers: tuple[float, ...]
    pairs: tuple[tuple[int, int, float], ...]
    threshold: float  # effective rank at which a layer does half of what it can
    capacity: float  # total rank from which on more of it hurts
    harm: float  # how much a doubling past that costs


class SyntheticProblem:
    """One synthetic user.

    Args:
        num_layers: L; the space has L gates, n and r, so ``L + 2`` dimensions.
        seed: of this user, any integer.
        family: of the population it is related to, any integer.
        related: kinship in [0, 1]: 0 is a user of its own, 1 a copy of the family's weights.
        noise: standard deviation of a measurement, as a share of the gain of the strong layers.
        ranks: that are searched.
    """

    def __init__(
        self,
        num_layers: int = 32,
        *,
        seed: int = 0,
        family: int = 0,
        related: float = 0.0,
        noise: float = 0.03,
        ranks: Sequence[int] = RANKS,
    ) -> None:
        self.space = MemorySpace(num_layers=num_layers, max_loras=num_layers, ranks=tuple(ranks))
        self.objectives = OBJECTIVES
        self._noise = noise
        self._seed = seed
        common = random.Random(f"family {family} {num_layers}")
        own = random.Random(f"user {family} {seed} {num_layers}")
        theirs, mine = _two_objectives(num_layers, common), _two_objectives(num_layers, own)
        self._weights = tuple(_mixed(t, m, related, own) for t, m in zip(theirs, mine, strict=True))
        reach = [max(self._best_gain(w), 1e-9) for w in self._weights]
        self._scale = (_LOSS_REACH / reach[0], _ROUGE_REACH / reach[1])

    def exact(self, placement: Placement) -> dict[str, float]:
        """The values without noise: ``loss`` in nats per token, ``rouge_l`` as a share of 1."""
        loss, rouge = (
            scale * _gain(w, placement) for scale, w in zip(self._scale, self._weights, strict=True)
        )
        return {"loss": 2.6 - loss, "rouge_l": 0.14 + rouge}

    def measure(self, placement: Placement, repeat: int = 0) -> dict[str, float]:
        """The values with noise, which depends on the user, the placement and ``repeat`` alone."""
        text = f"{self._seed} {repeat} {placement.key}".encode()
        generator = random.Random(hashlib.sha256(text).digest())
        values = self.exact(placement)
        return {
            "loss": values["loss"] + generator.gauss(0.0, self._noise * _LOSS_REACH),
            "rouge_l": values["rouge_l"] + generator.gauss(0.0, self._noise * _ROUGE_REACH),
        }

    @property
    def no_memory(self) -> dict[str, float]:
        """The values of no memory at all: the reference of the hypervolume."""
        return self.exact(NO_MEMORY)

    def best_known(self, directions: int = 13, restarts: int = 2) -> list[dict[str, float]]:
        """The front that hill climbing on the noise-free values finds; a lower bound.

        It climbs along many weightings of the two objectives, from random starts and from the last
        optimum, with many more evaluations than any search gets.
        """
        found: dict[str, tuple[float, ...]] = {}
        generator = random.Random(0)
        last: list[MemoryConfig] = []
        for index in range(directions):
            share = index / (directions - 1)
            starts = last + [self.space.sample(generator) for _ in range(restarts)]
            ends = [self._climb(start, share, found) for start in starts]
            last = [max(ends, key=lambda end: end[1])[0]]
        values = list(found.values())
        keep = non_dominated(values)
        return [{"loss": -v[0], "rouge_l": v[1]} for v, kept in zip(values, keep, strict=True) if kept]

    def _climb(
        self, here: MemoryConfig, share: float, found: dict[str, tuple[float, ...]]
    ) -> tuple[MemoryConfig, float]:
        """The local optimum above ``here`` of one weighting, and its value."""

        def value(config: MemoryConfig) -> float:
            placement = self.space.placement(config)
            if placement.key not in found:
                found[placement.key] = maximized(OBJECTIVES, self.exact(placement))
            loss, rouge = found[placement.key]
            return share * loss / _LOSS_REACH + (1 - share) * rouge / _ROUGE_REACH

        best = value(here)
        while True:
            ranked = max(
                ((value(move), index, move) for index, move in enumerate(self.space.neighbours(here)))
            )
            if ranked[0] <= best + 1e-12:
                return here, best
            best, _, here = ranked

    def _best_gain(self, weights: _Weights) -> float:
        """Roughly the largest gain: the k best layers, all of one rank."""
        order = sorted(range(self.space.num_layers), key=lambda layer: -weights.layers[layer])
        return max(
            _gain(weights, Placement(tuple((layer, rank) for layer in sorted(order[:k]))))
            for k in range(1, len(order) + 1)
            for rank in self.space.ranks
        )


@lru_cache(maxsize=4096)
def synthetic_user(
    num_layers: int, seed: int, family: int, related: float, noise: float, ranks: tuple[int, ...] = RANKS
) -> SyntheticProblem:
    """The same problem for the same arguments, made once per process."""
    return SyntheticProblem(num_layers, seed=seed, family=family, related=related, noise=noise, ranks=ranks)


def _two_objectives(num_layers: int, rng: random.Random) -> tuple[_Weights, _Weights]:
    """Weights of the loss and of ROUGE-L, which share half of theirs."""
    first = _weights(num_layers, rng, threshold=12.0, capacity=24.0 * num_layers, harm=0.25)
    second = _weights(num_layers, rng, threshold=24.0, capacity=40.0 * num_layers, harm=0.15)
    layers = tuple(
        a if rng.random() < _SHARED else b for a, b in zip(first.layers, second.layers, strict=True)
    )
    return first, _Weights(layers, second.pairs, second.threshold, second.capacity, second.harm)


def _weights(
    num_layers: int, rng: random.Random, *, threshold: float, capacity: float, harm: float
) -> _Weights:
    order = rng.sample(range(num_layers), num_layers)
    strong, harmful = max(2, round(_STRONG * num_layers)), max(1, round(_HARMFUL * num_layers))
    layers = [rng.uniform(-0.05, 0.1) for _ in range(num_layers)]
    for layer in order[:strong]:
        layers[layer] = rng.uniform(0.5, 1.5)
    for layer in order[strong : strong + harmful]:
        layers[layer] = -rng.uniform(0.2, 0.8)
    beside = order[: 2 * strong]  # a single layer has no other to interact with
    chosen = [rng.sample(beside, 2) for _ in range(strong)] if len(beside) > 1 else []
    pairs = tuple((min(a, b), max(a, b), rng.uniform(-0.6, 0.9)) for a, b in chosen)
    return _Weights(tuple(layers), pairs, threshold, capacity, harm)


def _mixed(family: _Weights, own: _Weights, related: float, rng: random.Random) -> _Weights:
    """A user's weights: each is the family's with probability ``related``, else the user's own.

    Then each layer's differs a little from user to user.
    """
    layers = tuple(
        (f if rng.random() < related else o) * rng.uniform(0.8, 1.2)
        for f, o in zip(family.layers, own.layers, strict=True)
    )
    pairs = tuple(f if rng.random() < related else o for f, o in zip(family.pairs, own.pairs, strict=True))
    return _Weights(layers, pairs, family.threshold, family.capacity, family.harm)


def _gain(weights: _Weights, placement: Placement) -> float:
    """What the placement gains; 0 for no memory."""
    share = {layer: _saturated(rank, weights.threshold) for layer, rank in placement.ranks}
    total = sum(weights.layers[layer] * value for layer, value in share.items())
    total += sum(w * share.get(a, 0.0) * share.get(b, 0.0) for a, b, w in weights.pairs)
    size = sum(rank for _, rank in placement.ranks)
    return total - weights.harm * max(0.0, math.log2(max(size, 1) / weights.capacity)) ** 2


def _saturated(rank: int, threshold: float) -> float:
    """0 for rank 0, one half at the threshold, towards 1 above it; S-shaped in log rank."""
    return 1.0 / (1.0 + (threshold / rank) ** 2)
