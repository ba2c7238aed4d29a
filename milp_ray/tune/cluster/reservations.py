"""Reservations on a cluster that others use, kept until Ray Train asks for its workers.

Ray Train starts all its workers at once, or gives up after a minute. So Ray is asked beforehand for
a placement group per group of workers. As many groups of workers can start as placement groups are
created. A sum over what nodes report as free would not do: it does not know which GPU a free part
is of, and it has no turn among others that wait. What nodes have in all is
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

from milp_ray.tune.cluster.resources import TrialResources, amounts, used_by_others

_POLL_SECONDS = 0.25
_SETTLE_SECONDS = 3.0  # what has just ended, our own search too, is released bit by bit
_CHECK_SECONDS = 60.0


class Reservation:
    """Placement groups, one per group of workers, up to ``wanted.concurrent``.

    Args:
        wanted: what a worker takes, how many workers a group has, and how many groups are wanted.

    Attributes:
        placement_groups: those that Ray has created. Whoever needs their resources removes them; to
            remove one again changes nothing.
    """

    def __init__(self, wanted: TrialResources) -> None:
        bundles = [dict(wanted.per_worker)] * wanted.workers_per_trial
        self._wanted = wanted
        self._pending = [placement_group(bundles, strategy="PACK") for _ in range(wanted.concurrent)]
        self.placement_groups: list[PlacementGroup] = []

    @property
    def resources(self) -> TrialResources:
        """What is reserved: ``concurrent`` is the number of placement groups that are there."""
        return replace(self._wanted, concurrent=len(self.placement_groups))

    def refresh(self) -> int:
        """Ask Ray which placement groups are there by now; how many these are."""
        for group in [group for group in self._pending if _is_created(group)]:
            self._pending.remove(group)
            self.placement_groups.append(group)
        return len(self.placement_groups)

    def cancel_pending(self) -> None:
        """Ask for no more than what is reserved."""
        release(self._pending)
        self._pending = []

    def close(self) -> None:
        """Release all placement groups; a second time changes nothing."""
        release([*self._pending, *self.placement_groups])


def reserve(
    wanted: TrialResources,
    stop_requested: Callable[[], bool],
    notify: Callable[[str], object],
    check: Callable[[], object] = lambda: None,
) -> Reservation | None:
    """Reserve as many of ``wanted.concurrent`` groups of workers as fit; wait for at least one.

    Args:
        wanted: what a worker takes, and how many groups may start.
        stop_requested: looked at four times a second.
        notify: is told, once, what is waited for, or that fewer groups fit than were asked for.
        check: called once a minute while waiting; raises if the cluster could not hold a group any
            more.

    Returns:
        The reservation, to be closed; None: ``stop_requested()``.
    """
    reservation = Reservation(wanted)
    try:
        if _wait(reservation, wanted, stop_requested, notify, check):
            reservation.cancel_pending()
            return reservation
    except BaseException:
        reservation.close()
        raise
    reservation.close()
    return None


def _wait(
    reservation: Reservation,
    wanted: TrialResources,
    stop_requested: Callable[[], bool],
    notify: Callable[[str], object],
    check: Callable[[], object],
) -> bool:
    """Wait for a first placement group and those soon after it; False: ``stop_requested()``."""
    count, told = 0, False
    changed = checked = time.monotonic()
    while True:
        now, before, count = time.monotonic(), count, reservation.refresh()
        if count == wanted.concurrent:
            return True
        if stop_requested():
            return False
        changed = now if count > before else changed
        if now - changed >= _SETTLE_SECONDS:
            if count:
                others = used_by_others(reservation.resources)
                notify(f"room for {count} of {wanted.concurrent} groups of workers: {others}")
                return True
            if not told:
                told = True
                asked = f"{wanted.workers_per_trial} workers of " if wanted.workers_per_trial > 1 else ""
                asked += f"{amounts(wanted.per_worker)} are asked for"
                notify(f"waiting for room: {asked}, {used_by_others(reservation.resources)}")
            if now - checked >= _CHECK_SECONDS:
                checked = now
                check()
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def remove_leaked_groups() -> Iterator[None]:
    """Remove the placement groups that this job has made within the block.

    Ray Train leaks one where a worker is lost while its group meets, and one that it still waits
    for when we no longer wait for Ray Train. Either would stay as long as the job lives.
    """
    before = set(_ids_of_this_job())
    try:
        yield
    finally:
        made = [PlacementGroupID.from_hex(found) for found in _ids_of_this_job() if found not in before]
        release(PlacementGroup(found) for found in made)


def _ids_of_this_job() -> list[str]:
    """Ids of this job's placement groups; each ends with the job's id."""
    job = ray.get_runtime_context().get_job_id()
    table = placement_group_table().items()
    return [found for found, entry in table if found.endswith(job) and entry["state"] != "REMOVED"]


def _is_created(group: PlacementGroup) -> bool:
    return bool(placement_group_table(group)["state"] == "CREATED")


def release(groups: Iterable[PlacementGroup]) -> None:
    """Give the resources of placement groups back to Ray."""
    for group in groups:
        remove_placement_group(group)
