"""What one user's search can learn from finished ones: source tasks, and what they hand on.

Covers how knowledge travels. A :class:`SourceTask` is a finished search in plain form: placements
and values, no ids, no text. A :class:`~milp_ray.search.source_pool.SourcePool` collects these, and
gives a new search its :class:`TransferData`. The engine writes that into its own event log
(``transferred``) before it proposes anything, so that a resumed search needs no source. What a
search makes of it is :mod:`milp_ray.search.transfer.warm_start`; how many users run cold first, and
who is a source for whom in time, is the driver's business.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from milp_ray.config.objectives import Objective
from milp_ray.errors import SearchError, SpaceError
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.space import MemorySpace
from milp_ray.search.core.events import Event, damaged, text
from milp_ray.search.core.pareto import non_dominated

Mode = Literal["seeds", "prior"]
Row = tuple[MemoryConfig, tuple[float, ...]]

_DIGITS = 6  # of a value in the log; measurements are noisier by orders of magnitude


@dataclass(frozen=True)
class SourceTask:
    """A finished search.

    Attributes:
        observations: configurations with maximised values; the front is among them.
        no_memory: the same of no memory at all, NaN where it is not known; empty if nothing is.
    """

    observations: tuple[Row, ...]
    no_memory: tuple[float, ...] = ()

    def front(self) -> list[MemoryConfig]:
        """The non-dominated configurations, in the order of :attr:`observations`."""
        keep = non_dominated([values for _, values in self.observations])
        return [config for (config, _), kept in zip(self.observations, keep, strict=True) if kept]


@dataclass(frozen=True)
class TransferData:
    """What is transferred to one search from others.

    Attributes:
        mode: ``seeds`` (sources' placements only) or ``prior`` (placements like theirs, too).
        objectives: names with directions, as ``loss:min``, in the order of the values.
        sources: nearest first; never empty.
    """

    mode: Mode
    objectives: tuple[str, ...]
    sources: tuple[SourceTask, ...]

    def check(self, space: MemorySpace, objectives: Sequence[Objective]) -> None:
        """Check that a search of this space and these objectives can use it.

        Raises:
            SearchError: it is from another space or has other objectives, a value is infinite, or
                none.
        """
        if self.mode not in get_args(Mode) or not self.sources:
            raise SearchError("nothing to transfer", expected="mode seeds or prior, and a source")
        if self.objectives != labels(objectives):
            raise SearchError(
                "the sources have other objectives",
                expected=", ".join(labels(objectives)),
                remedy="transfer within one study only",
            )
        for source in self.sources:
            check_source(source, space, len(objectives))


def labels(objectives: Sequence[Objective]) -> tuple[str, ...]:
    """``("loss:min", …)``."""
    return tuple(f"{objective.name}:{objective.direction}" for objective in objectives)


def transferred_event(data: TransferData, space: MemorySpace) -> dict[str, object]:
    """Transfer data as an event of the log.

    Per source it has the no-memory values (null: not known) and rows of ``[gates, n, r, values…]``,
    each factor's value as the log has it. Values are maximised ones.
    """
    return {
        "event": "transferred",
        "mode": data.mode,
        "objectives": list(data.objectives),
        "donors": [
            {
                "no_memory": [None if math.isnan(value) else _rounded(value) for value in source.no_memory],
                "told": [
                    [*space.to_log(config).values(), *map(_rounded, values)]
                    for config, values in source.observations
                ],
            }
            for source in map(cleaned, data.sources)
        ],
    }


def event_of(
    data: TransferData,
    space: MemorySpace,
    objectives: Sequence[Objective],
    given: TransferData | None,
    begun: Collection[str],
) -> dict[str, object] | None:
    """The event that gives a search its transfer data; None where it has just these already.

    Args:
        data: to be given.
        space, objectives: of the search.
        given: what it was given before, if anything.
        begun: keys of what it has proposed.

    Raises:
        SearchError: it has begun, has other transfer data, or they are not for it.
    """
    data.check(space, objectives)
    event = transferred_event(data, space)
    if given is not None and transferred_event(given, space) == event:
        return None
    if given is not None or begun:
        raise SearchError(
            "the search has " + ("begun" if given is None else "other transfer data") + " already",
            remedy="transfer once, before the first ask; a resumed search has it in its event log",
        )
    return event


def transfer_data_from(
    event: Event, space: MemorySpace, objectives: Sequence[Objective], number: int, where: Path | None
) -> TransferData:
    """The transfer data written by :func:`transferred_event` in line ``number``.

    Raises:
        StorageError: it was not written so.
    """
    mode = text(event, "mode", number, where)
    names, sources = event.get("objectives"), event.get("donors")
    try:
        if not isinstance(names, list) or not isinstance(sources, list):
            raise TypeError
        data = TransferData(
            cast("Mode", mode),
            tuple(str(name) for name in names),
            tuple(_source_from(item, space, len(names)) for item in sources),
        )
        data.check(space, objectives)
    except (TypeError, ValueError, KeyError, SearchError, SpaceError):
        damaged(number, where, "transfers what this search cannot use")
    return data


def _source_from(item: Mapping[str, object], space: MemorySpace, m: int) -> SourceTask:
    told, no_memory = item["told"], item["no_memory"]
    if not isinstance(told, list) or not isinstance(no_memory, list):
        raise TypeError
    rows, names = [], [factor.log_key for factor in space.factors]
    for row in told:
        found, values = row[: len(names)], row[len(names) :]
        if len(values) != m:
            raise ValueError
        config = space.from_log(dict(zip(names, found, strict=True)))
        rows.append((config, tuple(float(value) for value in values)))
    return SourceTask(tuple(rows), tuple(math.nan if value is None else float(value) for value in no_memory))


def check_source(source: SourceTask, space: MemorySpace, m: int) -> None:
    """Raise a SearchError unless all configurations are of ``space``, each with ``m`` values."""
    try:
        for config, _ in source.observations:
            space.validate(config)
    except SpaceError as error:
        raise SearchError(
            "a source searched another space",
            expected="configurations of this search's space",
            remedy="transfer within one study only",
        ) from error
    tables = [values for _, values in source.observations] + ([source.no_memory] if source.no_memory else [])
    if any(len(values) != m or any(map(math.isinf, values)) for values in tables):
        raise SearchError("a source's values do not fit", expected=f"{m} finite numbers for every trial")


def cleaned(source: SourceTask) -> SourceTask:
    """Without rows that have a NaN, without no memory, and each placement's configuration once."""
    rows: dict[MemoryConfig, tuple[float, ...]] = {}
    for config, values in source.observations:
        if config.num_loras and any(config.gates) and not any(map(math.isnan, values)):
            rows.setdefault(config, values)
    return SourceTask(tuple(rows.items()), source.no_memory)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
