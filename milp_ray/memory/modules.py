"""Parts of a model by their full name."""

from __future__ import annotations

from torch import Tensor, nn


def put(model: nn.Module, name: str, part: nn.Module | Tensor) -> None:
    """Set the model's module, parameter or buffer ``name``, such as ``layers.3.mlp.up_proj``."""
    home, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(home), leaf, part)
