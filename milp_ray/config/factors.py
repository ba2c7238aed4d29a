"""The names of the factors that a study can search, as ``memory.factors`` joins them by ``+``.

What each of them is stands in :mod:`milp_ray.memory.factors`.
"""

from __future__ import annotations

#: In the order in which they are written.
FACTORS = ("num", "size", "layer")
