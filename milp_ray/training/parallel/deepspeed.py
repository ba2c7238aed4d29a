"""DeepSpeed as milp_ray uses it: quiet, on whatever process group there is, nothing compiled inside a trial.

DeepSpeed is imported by the first call.
"""

from __future__ import annotations

import logging
import os
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
        module: what it wraps.
        config: without the entries that are the same everywhere.
        optimizer: ours (DeepSpeed's own are compiled for minutes); None: nothing is stepped.
    """
    # Read when DeepSpeed is first imported; without it, it goes by what the machine has, not by where we are.
    device = next(module.parameters()).device
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not deepspeed.comm.is_initialized():
        # Sums over shared memory for CPU ranks, from C++ that is compiled for most of a minute on first use.
        getattr(deepspeed.ops, "__compatible_ops__", {})[_SHM] = False
        deepspeed.init_distributed(dist.get_backend(), verbose=False)
    common = {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": dist.get_world_size(),
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=common | config)
    return engine
