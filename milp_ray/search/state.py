"""What the events of a search add up to, live and on replay.

Deciding whether an event may happen is *not* covered (that is the engine's); an event in a log that
could never have happened is damage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from milp_ray.config.objectives import Objective
from milp_ray.errors import SearchError, SpaceError
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.space import MemorySpace
from milp_ray.search.core.events import Event, damaged, numbers, text, whole
from milp_ray.search.core.records import Cost, Failure, Observation, Proposal
from milp_ray.search.core.transfer_data import TransferData, transfer_data_from

VERSION = 1


class SearchState:
    """Proposals and how they ended.

    Attributes:
        proposals: all ever made; the index is the id.
        pending: those that have not ended, by id, oldest first.
        observations, failures: those that have, by id, in the order in which they ended.
        keys: placement keys of all proposals.
        reference: the no-memory values as given, or None.
        reference_cost: what measuring them took; empty where it is not known, as in older logs.
        transfer_data: what was transferred from other users' searches, or None.
        notes: what was reported with the proposals.
        events: number of events applied, ``created`` included.
    """

    def __init__(
        self, space: MemorySpace, objectives: Sequence[Objective], seed: int, where: Path | None
    ) -> None:
        self._space = space
        self._objectives = objectives
        self._names = [objective.name for objective in objectives]
        self._where = where
        self._created = created_event(space, objectives, seed)
        self.proposals: list[Proposal] = []
        self.pending: dict[int, Proposal] = {}
        self.observations: dict[int, Observation] = {}
        self.failures: dict[int, Failure] = {}
        self.keys: set[str] = set()
        self.reference: dict[str, float] | None = None
        self.reference_cost: Cost = {}
        self.transfer_data: TransferData | None = None
        self.notes: list[str] = []
        self.events = 0

    def apply(self, event: Event) -> None:
        """Take in the next event.

        Raises:
            SearchError: a ``created`` of another search.
            StorageError: the event could not have happened.
        """
        number = self.events + 1
        kind = text(event, "event", number, self._where)
        if (number == 1) != (kind == "created"):
            damaged(number, self._where, "is out of place")
        if kind == "created":
            self._check_created(event)
        elif kind == "asked":
            self._asked(event, number)
        elif kind == "told":
            proposal = self._ended(event, number)
            values = numbers(event, "values", number, self._where)
            self._check_names(list(values), self._names, number)
            ordered = {name: values[name] for name in self._names}
            self.observations[proposal.id] = Observation(
                proposal.id, proposal.config, proposal.placement, ordered, self._cost(event, number)
            )
        elif kind == "failed":
            proposal = self._ended(event, number)
            reason = text(event, "reason", number, self._where)
            self.failures[proposal.id] = Failure(
                proposal.id, proposal.config, proposal.placement, reason, self._cost(event, number)
            )
        elif kind == "reference":
            self.reference = numbers(event, "values", number, self._where)
            self.reference_cost = self._cost(event, number)
        elif kind == "transferred":
            if self.proposals or self.transfer_data is not None:
                damaged(number, self._where, "is out of place")
            self.transfer_data = transfer_data_from(event, self._space, self._objectives, number, self._where)
        else:
            damaged(number, self._where, "is of an unknown kind")
        self.events = number

    def proposal(self, id: int) -> Proposal:
        """The proposal with this id.

        Raises:
            SearchError: there is none.
        """
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < len(self.proposals):
            raise SearchError(
                "unknown proposal id",
                expected=f"0 to {len(self.proposals) - 1}"
                if self.proposals
                else "an id that ask() gave; there is none yet",
            )
        return self.proposals[id]

    def _asked(self, event: Event, number: int) -> None:
        source = text(event, "source", number, self._where)
        batch, notes = event.get("proposals"), event.get("notes", [])
        if not isinstance(batch, list) or not isinstance(notes, list):
            damaged(number, self._where, "has no valid proposals")
        for item in batch:
            if not isinstance(item, dict) or item.get("id") != len(self.proposals):
                damaged(number, self._where, "has no valid proposals")
            try:
                config = self._space.from_log(item)
                self._space.validate(config)
            except SpaceError:
                damaged(number, self._where, "proposes what the space does not have")
            placement = self._space.placement(config)
            if placement.key != item.get("placement"):
                damaged(number, self._where, "has a placement that does not follow from its configuration")
            proposal = Proposal(len(self.proposals), config, placement, source)
            self.proposals.append(proposal)
            self.pending[proposal.id] = proposal
            self.keys.add(placement.key)
        self.notes.extend(str(note) for note in notes)

    def _ended(self, event: Event, number: int) -> Proposal:
        index = whole(event, "id", number, self._where)
        if index not in self.pending:
            damaged(number, self._where, "ends a trial that was not running")
        return self.pending.pop(index)

    def _cost(self, event: Event, number: int) -> Cost:
        """What a trial took; older logs do not say."""
        found = event.get("cost", {})
        if not isinstance(found, dict) or not all(
            isinstance(value, int | float | str) for value in found.values()
        ):
            damaged(number, self._where, "has no valid cost")
        return found

    def _check_names(self, names: Sequence[str], expected: Sequence[str], number: int) -> None:
        if sorted(names) != sorted(expected):
            damaged(number, self._where, "has other objectives")

    def _check_created(self, event: Event) -> None:
        differing = [key for key in self._created if event.get(key) != self._created[key]]
        if differing:
            raise SearchError(
                f"the event log is that of a search with another {', '.join(differing)}",
                where=str(self._where or ""),
                expected="the space, objectives and seed that the search was begun with",
                remedy="restore them to continue, or give the new search a log of its own",
            )


def created_event(space: MemorySpace, objectives: Sequence[Objective], seed: int) -> dict[str, object]:
    """The first event of a log: all that a search may not change while it goes on."""
    return {
        "event": "created",
        "version": VERSION,
        "seed": seed,
        "space": space.describe(),
        "objectives": [
            {"name": o.name, "direction": o.direction, "exact": o.exact is not None} for o in objectives
        ],
    }


def asked_event(
    first: int, configs: Sequence[MemoryConfig], space: MemorySpace, source: str, notes: Sequence[str]
) -> dict[str, object]:
    """A batch of proposals, ids from ``first`` on, as one event: it happens whole or not at all."""
    return {
        "event": "asked",
        "source": source,
        **({"notes": list(notes)} if notes else {}),
        "proposals": [
            {"id": first + index, **space.to_log(config), "placement": space.placement(config).key}
            for index, config in enumerate(configs)
        ],
    }


def same_values(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether two tables of values are the same (up to rounding, as by a detour through text)."""
    return one.keys() == other.keys() and all(
        math.isclose(one[name], other[name], rel_tol=1e-12, abs_tol=0.0) for name in one
    )
