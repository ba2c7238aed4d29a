"""Memory spaces, placements and adapters. What is exported here needs no torch; adapters.py does."""

from milp_ray.memory.space import MemoryConfig, MemorySpace, Placement

__all__ = ["MemoryConfig", "MemorySpace", "Placement"]
