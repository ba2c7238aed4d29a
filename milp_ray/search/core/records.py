"""What an engine hands out: proposals, observations, failures, settings, candidates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.placement import Placement

TRANSFER = "transfer"  # source of proposals that follow from other users' searches
GIVEN = "given"  # of those that the study names (search.points_to_evaluate)


@dataclass(frozen=True)
class Proposal:
    """A configuration to measure.

    Attributes:
        id: counts from 0 within an engine; what is told refers to it.
        config: θ; has n ≥ 1 and at least one active layer.
        placement: what it means for the model; no other proposal of the engine has the same.
        source: who proposed it: ``initial``, ``transfer`` (other users' searches), or the surrogate
            that did (after a fallback, the one fallen back to).
    """

    id: int
    config: MemoryConfig
    placement: Placement
    source: str


Cost = Mapping[str, float | str]  # what a trial took, by name; empty where it is not known
ByUser = Mapping[str, Mapping[str, float]]  # of a mean over users: each one's values, by alias


@dataclass(frozen=True)
class Observation:
    """A measured proposal.

    Attributes:
        id, config, placement: of the proposal.
        values: every objective by name, in the user's units.
        cost: what measuring took; it does not count when two observations are compared.
    """

    id: int
    config: MemoryConfig
    placement: Placement
    values: Mapping[str, float]
    cost: Cost = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))
        object.__setattr__(self, "cost", MappingProxyType(dict(self.cost)))

    def __reduce__(self) -> tuple[object, ...]:
        # A read-only view does not pickle.
        return (Observation, (self.id, self.config, self.placement, dict(self.values), dict(self.cost)))


@dataclass(frozen=True)
class Failure:
    """A proposal that ended without a measurement, and why; ``cost``: what it took until then."""

    id: int
    config: MemoryConfig
    placement: Placement
    reason: str
    cost: Cost = field(default_factory=dict, compare=False)


class ProposalCounts(NamedTuple):
    """How many proposals were made, and how they stand: ``asked`` is the sum of the others."""

    asked: int
    pending: int
    told: int
    failed: int


@dataclass(frozen=True)
class EngineSettings:
    """An engine's settings, see :class:`milp_ray.search.engine.Engine`."""

    initial: int
    batch: int
    surrogate: str
    surrogate_options: Mapping[str, object]
    trials: int | None
    outcome: str = "standardize"
    points: tuple[MemoryConfig, ...] = ()


class Candidates(list[MemoryConfig]):
    """Configurations on their way to become proposals.

    Attributes:
        source: who proposed them, see :attr:`Proposal.source`.
        notes: what should be known about how they came about (a surrogate fell back to another).
    """

    def __init__(
        self, configs: Iterable[MemoryConfig] = (), source: str = "", notes: Iterable[str] = ()
    ) -> None:
        super().__init__(configs)
        self.source = source
        self.notes = tuple(notes)
