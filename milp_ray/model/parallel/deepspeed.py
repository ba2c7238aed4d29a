"""DeepSpeed as milp_ray uses it: quiet, on the present process group, compiling nothing.

The first call imports DeepSpeed.
"""

from __future__ import annotations

import logging
import os
from types import ModuleType
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

_SHM = "deepspeed_shm_comm"


def initialize(
    module: nn.Module, config: dict[str, Any], optimizer: torch.optim.Optimizer | None = None
) -> Any:
    """DeepSpeed's engine of ``module`` on the ranks of the present process group.

    Args:
        module: that it wraps.
        config: without the entries that all engines share.
        optimizer: one of torch's (DeepSpeed compiles its own for minutes), or None for no steps.
    """
    deepspeed = _deepspeed(next(module.parameters()).device)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=_common() | config)
    return engine


def partition(module: nn.Module, device: torch.device, config: dict[str, Any]) -> None:
    """Move a module to ``device``, sharding each parameter over the ranks before the next one.

    DeepSpeed's engine alone would move the whole module first, for which there may be no room.

    Args:
        module: on the host, the same on every rank.
        device: of this rank.
        config: of the engine that :func:`initialize` makes of it later.
    """
    deepspeed = _deepspeed(device)
    # Its memory-efficient linear layer is for weights that are trained, and replaces everybody's.
    deepspeed.zero.Init(module=module, config_dict_or_path=_common() | config, mem_efficient_linear=False)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)


def _common() -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": dist.get_world_size(),
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def _deepspeed(device: torch.device) -> ModuleType:
    """The package, on this process's group."""
    # Read at DeepSpeed's first import; otherwise it picks whatever accelerator the machine has.
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not deepspeed.comm.is_initialized():
        # All-reduce over shared memory for CPU ranks: its C++ is compiled for most of a minute.
        getattr(deepspeed.ops, "__compatible_ops__", {})[_SHM] = False
        deepspeed.init_distributed(dist.get_backend(), verbose=False)
    return deepspeed  # type: ignore[no-any-return]
