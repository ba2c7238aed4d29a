"""The process group of a trial: how its ranks exchange gradients, numbers and faults.

All ranks run the same trial in lock-step: the same batches, each its share of the texts. They
all-reduce gradients and a few numbers, gather JSON values, and agree whether to go on. A rank that
crashes tells nobody: whoever started the ranks sees it end, and ends the others. No Ray here.
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
from milp_ray.model.parallel.rendezvous import Rendezvous, connect_store

Item = TypeVar("Item")


class Group:
    """A group of one rank, and the interface of every group. All ranks make the same calls.

    Attributes:
        rank: of this process, from 0.
        size: number of ranks.
    """

    rank = 0
    size = 1

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This rank's share: every ``size``-th item, so that sorted ones spread evenly."""
        return list(items[self.rank :: self.size])

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums of each value over all ranks."""
        return list(values)

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum a tensor on the ranks' devices over all ranks, in place."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return flag

    def all_gather(self, item: Item) -> list[Item]:
        """Every rank's item, by rank.

        Args:
            item: a JSON value, of lists and not tuples. PyTorch's ``all_gather_object`` unpickles
                what it receives, and so runs the code of whoever can write to the network.
        """
        return [item]

    def on_all_ranks(self, work: Callable[[], object]) -> None:
        """Do this rank's work, and raise on all ranks what any of them raises.

        Raises:
            MilpRayError: that of the lowest rank that failed.
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
        plain = self.all_gather(None if failure is None else failure.to_plain())
        failures = [error for error in plain if error is not None]
        if failures:
            raise from_plain(failures[0])

    @contextlib.contextmanager
    def extended_timeout(self, seconds: float) -> Iterator[None]:
        """Inside the block ranks wait this long for each other, where one may be much later."""
        yield


SOLO = Group()


class Ranks(Group):
    """The process group of this process, for its life: NCCL on GPUs, gloo otherwise.

    Numbers and JSON values go over gloo on GPUs, too, so that they wait for no kernel.

    Args:
        rendezvous: where the ranks meet; the constructor returns when all have come.
        device: of this rank.

    Raises:
        torch.distributed.DistError: not all came in time.
    """

    def __init__(self, rendezvous: Rendezvous, device: torch.device) -> None:
        self.rank, self.size, self.device = rendezvous.rank, rendezvous.size, device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # for whoever names none, such as FSDP's mesh
        self._timeout = rendezvous.timeout
        timeout = datetime.timedelta(seconds=rendezvous.timeout)
        options: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
        # DeepSpeed makes further groups, which would wait for a hung rank for torch's 30 minutes.
        for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
            setattr(dist.distributed_c10d, name, timeout)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=connect_store(rendezvous),
            rank=rendezvous.rank,
            world_size=rendezvous.size,
            timeout=timeout,
            **options,
        )
        self._control = dist.new_group(backend="gloo", timeout=timeout)

    def total(self, values: Sequence[float]) -> list[float]:
        """See :class:`Group`."""
        table = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(table, group=self._control)
        return [float(value) for value in table]

    def all_reduce(self, tensor: Tensor) -> None:
        """See :class:`Group`."""
        dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """See :class:`Group`."""
        return self.total([float(flag)])[0] > 0

    def all_gather(self, item: Item) -> list[Item]:
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
    def extended_timeout(self, seconds: float) -> Iterator[None]:
        """See :class:`Group`."""
        self._set_timeout(max(seconds, self._timeout))
        try:
            yield
        finally:
            self._set_timeout(self._timeout)

    def _set_timeout(self, seconds: float) -> None:
        # Not public; torchtitan calls it for the same purpose.
        for group in (None, self._control):
            dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds), group)

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()
