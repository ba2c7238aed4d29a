"""The finished searches of a study, and what a next user is given of them.

How many users run cold first, and who is a source for whom in time, is the driver's business.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from milp_ray.config.objectives import Objective, maximized
from milp_ray.errors import SearchError
from milp_ray.memory.space import MemorySpace
from milp_ray.search.core.pareto import non_dominated
from milp_ray.search.core.transfer_data import SourceTask, TransferData, check_source, cleaned, labels
from milp_ray.search.engine import Engine

SOURCES = 8  # of one search, at most: what more would add, the log of every user would have to carry
ROWS = 48  # of a source, at most


class SourcePool:
    """The source tasks of one study. All methods may be called from any thread.

    Args:
        space: that all of its users search.
        objectives: of all of its users.
        mode: what its users are given; ``none``: nothing.
        first: sources that are needed before anything is transferred, at least 1. The first batch
            of users finds fewer and so runs cold, exactly as without transfer.
    """

    def __init__(
        self,
        space: MemorySpace,
        objectives: Sequence[Objective],
        mode: Literal["none", "seeds", "prior"] = "prior",
        first: int = 1,
    ) -> None:
        self._space, self._objectives = space, tuple(objectives)
        self._mode, self._first = mode, max(1, first)
        self._sources: list[SourceTask] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def ready(self) -> bool:
        """Whether there are sources enough, and a mode that asks for them."""
        return self._mode != "none" and len(self._sources) >= self._first

    def add(self, source: Engine | SourceTask) -> bool:
        """Take in a finished search; False if it measured nothing and so is of no use.

        Raises:
            SearchError: it is from another space or has other objectives.
        """
        if not isinstance(source, SourceTask):
            if source.space.describe() != self._space.describe():
                raise SearchError(
                    "the source searched another space",
                    expected="the memory section of one study",
                    remedy="transfer within one study only",
                )
            if labels(source.objectives) != labels(self._objectives):
                raise SearchError("the source has other objectives", expected="the objectives of one study")
            source = source_of(source)
        source = cleaned(source)
        if not source.observations:
            return False
        check_source(source, self._space, len(self._objectives))
        with self._lock:
            self._sources.append(source)
        return True

    def transfer_data(self, no_memory: Mapping[str, float] | None = None) -> TransferData | None:
        """What a next user is given: the sources whose no-memory values are nearest to its own.

        Args:
            no_memory: of the next user, by name; None or a missing name is not known.

        Returns:
            None while there are too few sources, and with mode ``none``.
        """
        with self._lock:
            sources = list(self._sources)
        if self._mode == "none" or not self.ready:
            return None
        own = tuple(o.maximized((no_memory or {}).get(o.name, math.nan)) for o in self._objectives)
        chosen = tuple(sources[index] for index in _nearest(sources, own)[:SOURCES])
        return TransferData(self._mode, labels(self._objectives), chosen)

    def give(self, engine: Engine) -> bool:
        """Give a search its transfer data, unless it has begun or has some, or there are none.

        Safe to call for every user of a run that is resumed. The search should know its reference
        by then.

        Returns:
            Whether something was transferred now.
        """
        if engine.proposals or engine.transferred is not None:
            return False
        data = self.transfer_data(engine.reference)
        if data is None:
            return False
        engine.transfer(data)
        return True


def source_of(engine: Engine, rows: int = ROWS) -> SourceTask:
    """A search as a source: its front, and as many others as fit, evenly spread over its course.

    Args:
        engine: finished or not; what has been told so far counts.
        rows: of the table, at most (the front may take all of it).
    """
    seen = engine.observations
    table = [maximized(engine.objectives, observation.values) for observation in seen]
    front = [index for index, keep in enumerate(non_dominated(table)) if keep]
    rest = [index for index in range(len(seen)) if index not in set(front)]
    wanted = max(0, min(len(rest), rows - len(front)))
    spread = [rest[(index * len(rest)) // wanted] for index in range(wanted)]
    given = engine.reference or {}
    return SourceTask(
        observations=tuple((seen[index].config, table[index]) for index in sorted([*front[:rows], *spread])),
        no_memory=tuple(o.maximized(given.get(o.name, math.nan)) for o in engine.objectives) if given else (),
    )


def _nearest(sources: Sequence[SourceTask], own: Sequence[float]) -> list[int]:
    """Indices of the sources, nearest no-memory values first; of equal ones the newest.

    Distances are in standard deviations over the sources, and a value that is not known is one
    away.
    """
    order = list(range(len(sources)))[::-1]
    table = np.array([s.no_memory or [math.nan] * len(own) for s in sources], dtype=np.float64)
    known = ~np.isnan(table)
    counts = np.maximum(known.sum(axis=0), 1)
    centre = np.where(known, table, 0.0).sum(axis=0) / counts
    spread = np.sqrt((np.where(known, table - centre, 0.0) ** 2).sum(axis=0) / counts)
    away = np.abs(table - np.asarray(own)) / np.where(spread > 1e-12, spread, 1.0)
    distance = np.where(np.isnan(away), 1.0, away).sum(axis=1)
    return sorted(order, key=lambda index: round(float(distance[index]), 9))
