"""Free room on a cluster that others use: looked for, waited for, and held until Ray Train asks for
it.

Ray Train starts all its workers at once, or none and gives up after a minute. So what is free is
found out beforehand, by asking Ray for it: a placement group per group of workers. Those that come
into being are as many as can start; unlike sums over what nodes report as free, they know which GPU
a part is of, and they have their turn among others that wait. What nodes have in all is
:mod:`milp_ray.tune.cluster.resources`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import ray
from ray._raylet import PlacementGroupID
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from milp_ray.tune.cluster.resources import TrialResources, amounts, held_by_others

_POLL_SECONDS = 0.25
_SETTLE_SECONDS = 3.0  # what has just ended, our own search too, gives its room back bit by bit
_CHECK_SECONDS = 60.0


class Reservation:
    """Placement groups of as many groups of workers as there is free room for, up to
    ``worker.count``.

    ``held``: those that hold room. Whoever needs the room removes them; to remove one again changes
    nothing.
    """

    def __init__(self, worker: TrialResources) -> None:
        bundles = [dict(worker.resources)] * worker.workers
        self._worker = worker
        self._waiting = [placement_group(bundles, strategy="PACK") for _ in range(worker.count)]
        self.held: list[PlacementGroup] = []

    @property
    def worker(self) -> TrialResources:
        """What a worker takes, and for how many groups there is room."""
        return replace(self._worker, count=len(self.held))

    def look(self) -> int:
        """For how many groups there is room by now."""
        for group in [group for group in self._waiting if _is_there(group)]:
            self._waiting.remove(group)
            self.held.append(group)
        return len(self.held)

    def settle(self) -> None:
        """Ask for no more than what is held."""
        release(self._waiting)
        self._waiting = []

    def close(self) -> None:
        """Let all of it go; a second time changes nothing."""
        release([*self._waiting, *self.held])


def reserve(
    worker: TrialResources,
    stopping: Callable[[], bool],
    notify: Callable[[str], object],
    check: Callable[[], object] = lambda: None,
) -> Reservation | None:
    """Hold room for as many of ``worker.count`` groups as there is, for one at least: it is waited
    for.

    Args:
        worker: what a worker takes, and how many groups may start.
        stopping: looked at four times a second.
        notify: is told, once, what is waited for, or that there is room for fewer groups than asked
            for.
        check: called once a minute while waiting; raises if the cluster could not hold a group any
            more.

    Returns:
        The room, to be closed; None: ``stopping()``.
    """
    room = Reservation(worker)
    try:
        if _waited_for(room, worker, stopping, notify, check):
            room.settle()
            return room
    except BaseException:
        room.close()
        raise
    room.close()
    return None


def _waited_for(
    room: Reservation,
    worker: TrialResources,
    stopping: Callable[[], bool],
    notify: Callable[[str], object],
    check: Callable[[], object],
) -> bool:
    """Whether there is room, all that comes in a few seconds; False: ``stopping()``."""
    count, told = 0, False
    changed = checked = time.monotonic()
    while True:
        now, before, count = time.monotonic(), count, room.look()
        if count == worker.count:
            return True
        if stopping():
            return False
        changed = now if count > before else changed
        if now - changed >= _SETTLE_SECONDS:
            if count:
                notify(f"room for {count} of {worker.count} groups of workers: {held_by_others(room.worker)}")
                return True
            if not told:
                told = True
                asked = f"{worker.workers} workers of " if worker.workers > 1 else ""
                asked += f"{amounts(worker.resources)} are asked for"
                notify(f"waiting for room: {asked}, {held_by_others(room.worker)}")
            if now - checked >= _CHECK_SECONDS:
                checked = now
                check()
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def leaked_groups_removed() -> Iterator[None]:
    """Placement groups that this job makes within the block are gone after it.

    Ray Train leaves one for as long as the job lives where a worker is lost while its group meets,
    and one that it waits for where it is not waited for itself.
    """
    before = set(_of_this_job())
    try:
        yield
    finally:
        made = [PlacementGroupID.from_hex(found) for found in _of_this_job() if found not in before]
        release(PlacementGroup(found) for found in made)


def _of_this_job() -> list[str]:
    """Ids, in which Ray keeps the job's."""
    job = ray.get_runtime_context().get_job_id()
    table = placement_group_table().items()
    return [found for found, entry in table if found.endswith(job) and entry["state"] != "REMOVED"]


def _is_there(group: PlacementGroup) -> bool:
    return bool(placement_group_table(group)["state"] == "CREATED")


def release(groups: Iterable[PlacementGroup]) -> None:
    """Give the room of placement groups back."""
    for group in groups:
        remove_placement_group(group)
