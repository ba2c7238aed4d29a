"""Parts of a model by their full name."""

from __future__ import annotations

from torch import Tensor, nn


def put(model: nn.Module, name: str, part: nn.Module | Tensor) -> None:
    """Have a module, parameter or buffer be the model's ``name``, such as
    ``model.layers.3.mlp.up_proj``."""
    home, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(home), leaf, part)
