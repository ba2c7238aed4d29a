"""How the frozen base lies over the ranks: on each one whole, or divided once and gathered layer by layer.

What changes from trial to trial is the adapter alone, which is put on afterwards and is never divided. So
the base is divided when it is loaded, and stays so for the life of the process:

- DeepSpeed's ZeRO stage 3, as for inference: an engine without an optimizer. Its hooks gather a module's
  parameters before it is used, forward and backward, and release them after; optionally they lie in the
  host's memory meanwhile. Wrapping base *and* adapter, trial by trial, leaks its hooks (docs/findings.md).
- PyTorch's FSDP2, layer by layer: lighter, no offload of DeepSpeed's kinds.

Both need that all ranks call the same modules in the same order, and that the call goes through the root
module (:class:`Root`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from milp_ray.memory.modules import put
from milp_ray.model.parallel.group import SOLO, Group

Strategy = Literal["none", "ddp", "zero1", "zero2", "zero3", "fsdp"]
SHARDED = ("zero3", "fsdp")
# ZeRO stage that divides the adapter's optimizer states.
STEPPED = {"zero1": 1, "zero2": 2, "zero3": 2}


class WeightSource(Protocol):
    """Where a meta model's values come from: :class:`milp_ray.model.streaming.Weights`."""

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Some rows of a parameter, or all."""

    def fill(self, model: nn.Module, part: nn.Module, device: torch.device, read: bool) -> None:
        """Make the parameters of a part of the model real."""


class Root(nn.Module):
    """The base as one module: token ids to the logits of the positions that are wanted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, select: Callable[[Tensor], Tensor], **inputs: Any) -> Tensor:
        """``select`` takes ``B x T x h`` hidden states to ``k x h``; the result is ``k x v`` logits."""
        hidden = self.model.base_model(**inputs).last_hidden_state  # type: ignore[operator]
        logits: Tensor = self.model.lm_head(select(hidden))  # type: ignore[operator]
        return logits


@dataclass(frozen=True)
class Parallel:
    """How the ranks of a process group share the work of a trial.

    Attributes:
        group: the ranks.
        strategy: see the module and :mod:`milp_ray.training.optimizer_steps`.
        offload: keep what ZeRO divides in the host's memory.
    """

    group: Group = SOLO
    strategy: Strategy = "none"
    offload: bool = False

    @property
    def sharded(self) -> bool:
        """Whether the base is divided: all ranks must then call it equally often."""
        return self.group.size > 1 and self.strategy in SHARDED

    @property
    def zero(self) -> int:
        """ZeRO stage that divides the adapter's optimizer states, 0 for none."""
        return STEPPED.get(self.strategy, 0) if self.group.size > 1 else 0


ALONE = Parallel()


def place(
    root: Root,
    layers: Sequence[nn.Module],
    device: torch.device,
    parallel: Parallel,
    weights: WeightSource | None = None,
) -> None:
    """Put the base where it is used, once and in place: whole, or divided over the ranks.

    A base that is divided never lies on a device whole, nor on a host if ``weights`` are given: it may be
    larger than that.

    Args:
        root: of a frozen base on the host, without an adapter; on the meta device if ``weights`` are given.
        layers: its transformer layers.
        device: of this rank.
        parallel: whose group is the present process group.
        weights: to read while the base is divided.

    Raises:
        MilpRayError: the weights cannot be read, by this rank or another one.
    """
    if not parallel.sharded:
        root.to(device)
    elif parallel.strategy == "zero3":
        _zero3(root, layers, device, parallel, weights)
    else:
        _fsdp(root, layers, device, parallel.group, weights)


def _zero3(
    root: Root,
    layers: Sequence[nn.Module],
    device: torch.device,
    parallel: Parallel,
    weights: WeightSource | None,
) -> None:
    from milp_ray.model.parallel.deepspeed import initialize, partition

    # DeepSpeed's defaults keep up to a billion gathered parameters: the whole of a smaller base.
    largest = max(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers)
    zero: dict[str, object] = {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 2 * largest,
        "stage3_max_reuse_distance": largest,
        "stage3_prefetch_bucket_size": largest,
    }
    if parallel.offload:
        zero["offload_param"] = {"device": "cpu"}
    config = {"zero_optimization": zero}
    if weights is None:
        partition(root, device, config)
    else:
        # DeepSpeed hands every rank what rank 0 has, and each keeps its part: only rank 0 needs to read.
        first = parallel.group.rank == 0
        for part in _parts(root, layers):
            parallel.group.on_all_ranks(partial(weights.fill, root.model, part, device, read=first))
            partition(part, device, config)
    initialize(root, config)


def _parts(root: Root, layers: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """The layers, then each other module that has parameters of its own, after those inside it."""
    yield from layers
    inside = {module for layer in layers for module in layer.modules()}
    for module in reversed(list(root.modules())):
        if module not in inside and any(True for _ in module.parameters(recurse=False)):
            yield module


def _fsdp(
    root: Root, layers: Sequence[nn.Module], device: torch.device, group: Group, weights: WeightSource | None
) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (group.size,))
    for layer in layers:  # each is put on the device, and divided, before the next one
        fully_shard(layer, mesh=mesh)
    fully_shard(root, mesh=mesh)
    if weights is None:
        return
    buffers = dict(root.model.named_buffers(remove_duplicate=False))
    root.to_empty(device=device)  # of each parameter the rows that this rank keeps
    for name, buffer in buffers.items():
        put(root.model, name, buffer)
    group.on_all_ranks(lambda: _read_rows(root.model, group, weights))


@torch.no_grad()
def _read_rows(model: nn.Module, group: Group, weights: WeightSource) -> None:
    for name, parameter in model.named_parameters():
        mine: Tensor = parameter.to_local()  # type: ignore[attr-defined]
        # FSDP2 divides rows as torch.chunk does: equal counts, then what is left, then none.
        start = group.rank * -(-len(parameter) // group.size)
        if len(mine):
            mine.copy_(weights.read(name, slice(start, start + len(mine))))


def held(model: nn.Module) -> int:
    """Numbers of the base's parameters that lie on this rank between two calls."""
    total = 0
    for parameter in model.parameters():
        part = getattr(parameter, "ds_tensor", None)
        if part is None and hasattr(parameter, "to_local"):
            part = parameter.to_local()
        total += (parameter if part is None else part).numel()
    return total
