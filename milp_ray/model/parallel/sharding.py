"""How the ranks hold the frozen base: each one whole, or sharded, and gathered layer by layer.

From trial to trial only the adapter changes, which is attached later and never sharded. So the base
is sharded once, when it is loaded:

- DeepSpeed's ZeRO stage 3, as for inference: an engine without an optimizer. Its hooks gather a
  module's parameters before it is used, forward and backward, and release them after it. Parameters
  may be offloaded to the host's memory. Wrapping base *and* adapter, trial by trial, would leak
  those hooks (docs/findings.md).
- PyTorch's FSDP2, layer by layer: lighter, and without offload.

Both need that all ranks call the same modules in the same order, and call them through the root
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
# The ZeRO stage that shards the adapter's optimizer states (1), and its gradients (2).
ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 2}


class WeightSource(Protocol):
    """Where the weights of a meta model come from: :class:`milp_ray.model.streaming.Weights`."""

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Some rows of a parameter, or all."""

    def materialize(self, model: nn.Module, module: nn.Module, device: torch.device, read: bool) -> None:
        """Make the parameters of one of the model's modules real."""


class Root(nn.Module):
    """The base as one module: token ids to the logits of selected positions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, select: Callable[[Tensor], Tensor], **inputs: Any) -> Tensor:
        """Logits ``k x v`` of ``k x h``, which ``select`` takes of ``B x T x h`` hidden states."""
        hidden = self.model.base_model(**inputs).last_hidden_state  # type: ignore[operator]
        logits: Tensor = self.model.lm_head(select(hidden))  # type: ignore[operator]
        return logits


@dataclass(frozen=True)
class Parallel:
    """How the ranks of a process group share the base and the work of a trial.

    Attributes:
        group: the ranks.
        strategy: see the module, and :mod:`milp_ray.training.optimizer_steps`.
        offload: keep what ZeRO shards in the host's memory.
    """

    group: Group = SOLO
    strategy: Strategy = "none"
    offload: bool = False

    @property
    def sharded(self) -> bool:
        """Whether the base is sharded: all ranks must then call it equally often."""
        return self.group.size > 1 and self.strategy in SHARDED

    @property
    def zero(self) -> int:
        """The ZeRO stage of the adapter's optimizer; 0 where DeepSpeed does not step it."""
        return ZERO_STAGES.get(self.strategy, 0) if self.group.size > 1 else 0


ALONE = Parallel()


def shard_model(
    root: Root,
    layers: Sequence[nn.Module],
    device: torch.device,
    parallel: Parallel,
    weights: WeightSource | None = None,
) -> None:
    """Move the base to its device, in place: whole, or sharded over the ranks.

    A sharded base is never whole on a device, nor on a host if ``weights`` are given: it may be
    larger than either.

    Args:
        root: a frozen base without an adapter, on the host; on the meta device if ``weights`` are
            given.
        layers: its transformer layers.
        device: of this rank.
        parallel: of the present process group.
        weights: to read while the base is sharded.

    Raises:
        MilpRayError: this rank, or another one, cannot read the weights.
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

    # DeepSpeed's defaults keep up to a billion parameters gathered: all of a smaller base.
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
        # DeepSpeed broadcasts rank 0's values, and each rank keeps its shard: only rank 0 reads.
        first = parallel.group.rank == 0
        for module in _modules_to_shard(root, layers):
            work = partial(weights.materialize, root.model, module, device, read=first)
            parallel.group.on_all_ranks(work)
            partition(module, device, config)
    initialize(root, config)


def _modules_to_shard(root: Root, layers: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """The layers, then each other module with parameters of its own, children first."""
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
    for layer in layers:  # each is moved to the device, and sharded, before the next one
        fully_shard(layer, mesh=mesh)
    fully_shard(root, mesh=mesh)
    if weights is None:
        return
    buffers = dict(root.model.named_buffers(remove_duplicate=False))
    root.to_empty(device=device)  # room for this rank's rows of each parameter
    for name, buffer in buffers.items():
        put(root.model, name, buffer)
    group.on_all_ranks(lambda: _read_rows(root.model, group, weights))


@torch.no_grad()
def _read_rows(model: nn.Module, group: Group, weights: WeightSource) -> None:
    for name, parameter in model.named_parameters():
        local: Tensor = parameter.to_local()  # type: ignore[attr-defined]
        # FSDP2 shards rows as torch.chunk does: equal counts, then what is left, then none.
        start = group.rank * -(-len(parameter) // group.size)
        if len(local):
            local.copy_(weights.read(name, slice(start, start + len(local))))


def local_numel(model: nn.Module) -> int:
    """Number of the base's parameters that this rank holds between two calls."""
    total = 0
    for parameter in model.parameters():
        shard = getattr(parameter, "ds_tensor", None)
        if shard is None and hasattr(parameter, "to_local"):
            shard = parameter.to_local()
        total += (parameter if shard is None else shard).numel()
    return total
