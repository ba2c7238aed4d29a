"""Synthetic placement problems that stand in for trials."""

from __future__ import annotations

import math

from milp_ray.memory.placement import Placement
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Engine, Objective

LOSS_AND_ROUGE = (Objective("loss", "min"), Objective("rouge_l", "max"))
REFERENCE = {"loss": 3.0, "rouge_l": 0.0}
# Small enough for tests in seconds. Tests share the number of features, hence one compiled sampler.
TINY_SAAS = {"warmup": 8, "samples": 8, "thinning": 2, "keep": 4}


def small_space() -> MemorySpace:
    """4 layers, so 5 features."""
    return MemorySpace(num_layers=4, max_loras=4, ranks=(8, 16, 32))


def measure(placement: Placement) -> dict[str, float]:
    """A loss with two strong layers and a harmful one, and a conflicting ROUGE-L; deterministic."""
    ranks = placement.as_dict()
    strength = {1: 0.7, 2: 0.4, 0: -0.2}
    loss = 2.8 - sum(strength.get(layer, 0.05) * math.tanh(rank / 16) for layer, rank in ranks.items())
    rouge = 0.1 + 0.2 * math.tanh(ranks.get(3, 0) / 24) - 0.002 * sum(ranks.values()) / len(ranks)
    return {"loss": loss, "rouge_l": rouge}


def size(placement: Placement) -> float:
    """An exact objective; a plain function, so that plans pickle."""
    return 1000.0 * sum(placement.as_dict().values())


def run(engine: Engine, trials: int, k: int = 1) -> Engine:
    """Measure pending proposals, then ask for more, until so many have ended or all is finished."""
    while True:
        for proposal in engine.pending:
            engine.tell(proposal.id, measure(proposal.placement))
        ended = len(engine.observations) + len(engine.failures)
        if ended >= trials or not engine.ask(min(k, trials - ended)):
            return engine
