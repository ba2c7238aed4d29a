"""Memory spaces, placements and adapters. What is exported here needs no torch."""

from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.placement import Placement
from milp_ray.memory.space import MemorySpace

__all__ = ["MemoryConfig", "MemorySpace", "Placement"]
