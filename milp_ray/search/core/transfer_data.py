"""What one user's search can learn from finished ones: donors, and the material made of them for a next user.

Covers how knowledge travels: a :class:`Donor` is a finished search in plain form (placements and values; no
ids, no text), a :class:`~milp_ray.search.source_pool.DonorPool` collects donors and gives a new search its
:class:`Material`, the engine writes that into its own event log (``transferred``) before it proposes
anything, so that a resumed search needs no donors. What a search makes of its material is
:mod:`milp_ray.search.transfer.warm_start`; how many users run cold first, and who is a donor for whom in
time, is the driver's business.
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
class Donor:
    """A finished search.

    Attributes:
        told: configurations with what they measured, turned so that more is better; the front is among them.
        no_memory: the same of no memory at all, NaN where it is not known; empty if nothing is.
    """

    told: tuple[Row, ...]
    no_memory: tuple[float, ...] = ()

    def front(self) -> list[MemoryConfig]:
        """The non-dominated configurations, in the order of :attr:`told`."""
        keep = non_dominated([values for _, values in self.told])
        return [config for (config, _), kept in zip(self.told, keep, strict=True) if kept]


@dataclass(frozen=True)
class Material:
    """What is transferred to one search.

    Attributes:
        mode: ``seeds`` (donors' placements only) or ``prior`` (placements like theirs, too).
        objectives: names with directions, as ``loss:min``, in the order of the values.
        donors: nearest first; never empty.
    """

    mode: Mode
    objectives: tuple[str, ...]
    donors: tuple[Donor, ...]

    def check(self, space: MemorySpace, objectives: Sequence[Objective]) -> None:
        """Check that a search of this space and these objectives can use it.

        Raises:
            SearchError: it is from another space or has other objectives, a value is infinite, or none.
        """
        if self.mode not in get_args(Mode) or not self.donors:
            raise SearchError("no material to transfer", expected="mode seeds or prior, and a donor")
        if self.objectives != labels(objectives):
            raise SearchError(
                "the donors have other objectives",
                expected=", ".join(labels(objectives)),
                remedy="transfer within one study only",
            )
        for donor in self.donors:
            check_donor(donor, space, len(objectives))


def labels(objectives: Sequence[Objective]) -> tuple[str, ...]:
    """``("loss:min", …)``."""
    return tuple(f"{objective.name}:{objective.direction}" for objective in objectives)


def transferred_event(material: Material, space: MemorySpace) -> dict[str, object]:
    """``material`` as an event: per donor its no-memory values (null: not known) and rows of
    ``[gates, n, r, values…]``, each factor's value as the log has it. Values are maximised ones."""
    return {
        "event": "transferred",
        "mode": material.mode,
        "objectives": list(material.objectives),
        "donors": [
            {
                "no_memory": [None if math.isnan(value) else _rounded(value) for value in donor.no_memory],
                "told": [
                    [*space.to_log(config).values(), *map(_rounded, values)] for config, values in donor.told
                ],
            }
            for donor in map(cleaned, material.donors)
        ],
    }


def event_of(
    material: Material,
    space: MemorySpace,
    objectives: Sequence[Objective],
    given: Material | None,
    begun: Collection[str],
) -> dict[str, object] | None:
    """The event that gives a search its material; None where it has just that already.

    Args:
        material: to be given.
        space, objectives: of the search.
        given: what it was given before, if anything.
        begun: keys of what it has proposed.

    Raises:
        SearchError: it has begun, has other material, or the material is not for it.
    """
    material.check(space, objectives)
    event = transferred_event(material, space)
    if given is not None and transferred_event(given, space) == event:
        return None
    if given is not None or begun:
        raise SearchError(
            "the search has " + ("begun" if given is None else "other material") + " already",
            remedy="transfer once, before the first ask; a resumed search has it in its event log",
        )
    return event


def material_from(
    event: Event, space: MemorySpace, objectives: Sequence[Objective], number: int, where: Path | None
) -> Material:
    """The material written by :func:`transferred_event` in line ``number``.

    Raises:
        StorageError: it was not written so.
    """
    mode = text(event, "mode", number, where)
    names, donors = event.get("objectives"), event.get("donors")
    try:
        if not isinstance(names, list) or not isinstance(donors, list):
            raise TypeError
        material = Material(
            cast("Mode", mode),
            tuple(str(name) for name in names),
            tuple(_donor_from(item, space, len(names)) for item in donors),
        )
        material.check(space, objectives)
    except (TypeError, ValueError, KeyError, SearchError, SpaceError):
        damaged(number, where, "transfers what this search cannot use")
    return material


def _donor_from(item: Mapping[str, object], space: MemorySpace, m: int) -> Donor:
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
    return Donor(tuple(rows), tuple(math.nan if value is None else float(value) for value in no_memory))


def check_donor(donor: Donor, space: MemorySpace, m: int) -> None:
    """Raise a SearchError unless the donor's configurations are of ``space``, each with ``m`` values."""
    try:
        for config, _ in donor.told:
            space.validate(config)
    except SpaceError as error:
        raise SearchError(
            "a donor searched another space",
            expected="configurations of this search's space",
            remedy="transfer within one study only",
        ) from error
    tables = [values for _, values in donor.told] + ([donor.no_memory] if donor.no_memory else [])
    if any(len(values) != m or any(map(math.isinf, values)) for values in tables):
        raise SearchError("a donor's values do not fit", expected=f"{m} finite numbers for every trial")


def cleaned(donor: Donor) -> Donor:
    """Without rows that have a NaN, without no memory, and each placement's configuration once."""
    rows: dict[MemoryConfig, tuple[float, ...]] = {}
    for config, values in donor.told:
        if config.num_loras and any(config.gates) and not any(map(math.isnan, values)):
            rows.setdefault(config, values)
    return Donor(tuple(rows.items()), donor.no_memory)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
