"""The ranks that work on one trial together, and the little they must tell each other.

All ranks run the same trial in lock-step: the same batches, each its share of the texts. What goes between
them besides gradients is here: sums of a few numbers, and whether to go on. A rank that fails by itself tells
nobody: whoever started the ranks sees it end, and ends the others. No Ray here.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from milp_ray.errors import MilpRayError, from_plain
from milp_ray.model.parallel.rendezvous import Rendezvous, store_at

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
        """Every rank's item, by rank.

        Items are JSON values, of lists and not tuples: PyTorch's own way for objects unpickles what it gets,
        which runs whatever code somebody on the network put there.
        """
        return [item]

    def together(self, work: Callable[[], object]) -> None:
        """Do something on every rank.

        Raises:
            MilpRayError: of this or another rank, the lowest one's, on all of them.
        """
        failure: MilpRayError | None = None
        try:
            work()
        except MilpRayError as error:
            failure = error
        if self.size == 1:
            if failure is not None:
                raise failure
            return
        plain = self.gather(None if failure is None else failure.to_plain())
        failures = [error for error in plain if error is not None]
        if failures:
            raise from_plain(failures[0])

    @contextlib.contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """Inside the block a rank is waited for this long: for what one may do much later than another."""
        yield


SOLO = Group()


class Ranks(Group):
    """The process group of this process: NCCL on GPUs, gloo otherwise. One per process, for its life.

    Numbers go over gloo also on GPUs, so that they wait for no kernel.

    Args:
        meeting: where; returns when all are there.
        device: of this rank.

    Raises:
        torch.distributed.DistError: not all came in time.
    """

    def __init__(self, meeting: Rendezvous, device: torch.device) -> None:
        self.rank, self.size, self.device = meeting.rank, meeting.size, device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # who asks for no device, FSDP's mesh say, must get this one
        self._timeout = meeting.timeout
        patience = datetime.timedelta(seconds=meeting.timeout)
        options: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
        # DeepSpeed makes groups of its own, which would wait for a hung rank for torch's half an hour.
        for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
            setattr(dist.distributed_c10d, name, patience)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store_at(meeting),
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
        content = torch.frombuffer(bytearray(json.dumps(item).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(content)]), group=self._control)
        counts = [int(length) for length in lengths]
        padded = torch.zeros(max(counts), dtype=torch.uint8)
        padded[: len(content)] = content
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self._control)
        return [json.loads(part[:count].numpy().tobytes()) for part, count in zip(parts, counts, strict=True)]

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
