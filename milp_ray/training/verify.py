"""Hold the facts that are assumed of an architecture against the model that transformers would build.

Without weights: the modules are made on PyTorch's meta device; their
configuration is :mod:`milp_ray.training.pretrained`'s.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from milp_ray.config.models import ModelSettings
from milp_ray.errors import ModelError
from milp_ray.memory.architectures import Architecture
from milp_ray.training.pretrained import load_config


def verify_modules(settings: ModelSettings, architecture: Architecture) -> None:
    """Check that every module a placement can name exists and has the widths the counts assume.

    Raises:
        ModelError: one does not, with its name.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(settings))
    there = dict(model.named_modules())
    for layer in range(architecture.num_layers):
        for expected in architecture.modules(layer):
            weight = getattr(there.get(expected.name), "weight", None)
            if weight is None or sorted(weight.shape) != sorted(
                (expected.in_features, expected.out_features)
            ):
                raise ModelError(
                    f"the model has no feed-forward module {expected.name!r} of the expected widths",
                    where="model.path",
                    expected=f"{expected.in_features} -> {expected.out_features}",
                    remedy="check this architecture's entry in milp_ray/memory/architectures.py",
                )
