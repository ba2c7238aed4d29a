"""Check a base before workers load it: its weight files, and the modules that placements name.

No weights are read: the model is made on PyTorch's meta device, and of the files the headers are
read. The configuration is :mod:`milp_ray.model.pretrained`'s.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from milp_ray.config.models import ModelSettings
from milp_ray.errors import ModelError
from milp_ray.memory.architectures import Architecture, architecture_of
from milp_ray.model.load_errors import translate_load_errors
from milp_ray.model.pretrained import load_config
from milp_ray.model.weights import from_pretrained, has_local_weights


def verify_base(settings: ModelSettings) -> None:
    """Check that the files hold the model's tensors, and the model the modules of placements.

    Weights of a hub model that are not in the cache are not fetched, and not checked.

    Raises:
        ModelError: a tensor or a module is missing or has another shape (it is named), or
            transformers cannot build the model.
        StorageError, ClusterError: see :func:`milp_ray.model.load_errors.check_transient`.
    """
    config = load_config(settings)
    # A quantised base holds other tensors than the model that placements are counted on.
    if getattr(config, "quantization_config", None) is None and has_local_weights(settings):
        model = from_pretrained(settings, config, torch.float32, device_map="meta")
    else:
        with translate_load_errors(settings.path), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    verify_modules(model, architecture_of(config))


def verify_modules(model: Any, architecture: Architecture) -> None:
    """Check that every module that a placement can name is there, with the assumed widths.

    Raises:
        ModelError: one is not; it is named.
    """
    modules = dict(model.named_modules())
    for layer in range(architecture.num_layers):
        for expected in architecture.modules(layer):
            weight = getattr(modules.get(expected.name), "weight", None)
            if weight is None or sorted(weight.shape) != sorted(
                (expected.in_features, expected.out_features)
            ):
                raise ModelError(
                    f"the model has no feed-forward module {expected.name!r} of the expected widths",
                    where="model.path",
                    expected=f"{expected.in_features} -> {expected.out_features}",
                    remedy="check this architecture's entry in milp_ray/memory/architectures.py",
                )
