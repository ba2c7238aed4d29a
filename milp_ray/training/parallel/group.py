"""The ranks that work on one trial together, and the little they must tell each other.

All ranks run the same trial in lock-step: the same batches, each its share of the texts. What goes between
them besides gradients is here: sums of a few numbers, and whether to go on. A rank that fails by itself tells
nobody: whoever started the ranks sees it end, and ends the others. No Ray here.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from milp_ray.errors import MilpRayError

Item = TypeVar("Item")


class Group:
    """A group of one, which every other one behaves like.

    Attributes:
        rank: of this process, from 0.
        size: number of ranks.
    """

    rank = 0
    size = 1

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This rank's part of what all divide: every ``size``-th item, so that sorted ones spread evenly."""
        return list(items[self.rank :: self.size])

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks."""
        return list(values)

    def reduce(self, tensor: Tensor) -> None:
        """Sum a tensor on the ranks' device over all ranks, in place."""

    def any(self, flag: bool) -> bool:
        """Whether it holds for some rank."""
        return flag

    def gather(self, item: Item) -> list[Item]:
        """Every rank's item, by rank."""
        return [item]

    def together(self, work: Callable[[], object]) -> None:
        """Do something on every rank.

        Raises:
            MilpRayError: of this or another rank, the lowest one's, on all of them.
        """
        failure = None
        try:
            work()
        except MilpRayError as error:
            failure = error
        failures = [error for error in self.gather(failure) if error is not None]
        if failures:
            raise failures[0]

    @contextlib.contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """Inside the block a rank is waited for this long: for what one may do much later than another."""
        yield


SOLO = Group()


@dataclass(frozen=True)
class Meeting:
    """Where ranks find each other.

    Attributes:
        address: host and port where rank 0 listens.
        rank, size: see :class:`Group`.
        timeout: seconds after which a rank that others wait for counts as hung.
    """

    address: str
    rank: int
    size: int
    timeout: float = 120.0


class Ranks(Group):
    """The process group of this process: NCCL on GPUs, gloo otherwise. One per process, for its life.

    Numbers go over gloo also on GPUs, so that they wait for no kernel.

    Args:
        meeting: where; returns when all are there.
        device: of this rank.

    Raises:
        torch.distributed.DistError: not all came in time.
    """

    def __init__(self, meeting: Meeting, device: torch.device) -> None:
        self.rank, self.size, self.device = meeting.rank, meeting.size, device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # who asks for no device, FSDP's mesh say, must get this one
        self._timeout = meeting.timeout
        patience = datetime.timedelta(seconds=meeting.timeout)
        options: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{meeting.address}",
            rank=meeting.rank,
            world_size=meeting.size,
            timeout=patience,
            **options,
        )
        self._control = dist.new_group(backend="gloo", timeout=patience)

    def total(self, values: Sequence[float]) -> list[float]:
        """See :class:`Group`."""
        table = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(table, group=self._control)
        return [float(value) for value in table]

    def reduce(self, tensor: Tensor) -> None:
        """See :class:`Group`."""
        dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """See :class:`Group`."""
        return self.total([float(flag)])[0] > 0

    def gather(self, item: Item) -> list[Item]:
        """See :class:`Group`."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, item, group=self._control)
        return found

    @contextlib.contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """See :class:`Group`."""
        self._wait(max(seconds, self._timeout))
        try:
            yield
        finally:
            self._wait(self._timeout)

    def _wait(self, seconds: float) -> None:
        # Not public, and what torchtitan calls for the same end.
        for group in (None, self._control):
            dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds), group)

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()
