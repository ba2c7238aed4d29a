"""What the queue hands out: one trial to run."""

from __future__ import annotations

from dataclasses import dataclass

from milp_ray.memory.space import Placement

BASELINE = -1


@dataclass(frozen=True)
class Ticket:
    """One trial to run: whose, its number (:data:`BASELINE` for the no-memory measurement) and where."""

    alias: str
    number: int
    placement: Placement
    source: str
