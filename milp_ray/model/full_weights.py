"""The base's own parameters, fine-tuned for somebody, and the base as it was afterwards.

What is trained is a copy: the base's tensors are kept aside, and put back as the very same ones.
Does *not* cover a sharded base, of which no rank has all parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from milp_ray.errors import ModelError, StorageError
from milp_ray.model.base import BaseModel
from milp_ray.storage import atomic_write


@dataclass(frozen=True)
class FullWeights:
    """All parameters of a base, as :class:`milp_ray.training.loop.StageTrainer` trains them."""

    model: nn.Module

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter once, tied ones too."""
        return list(self.model.parameters())

    def train(self, mode: bool) -> None:
        """Nothing: the base's own dropout stays off, as for every other method."""


@contextlib.contextmanager
def trainable(base: BaseModel) -> Iterator[FullWeights]:
    """Inside the block the base has trainable fp32 copies of its parameters.

    Raises:
        ModelError: the base is sharded.
        RuntimeError: an adapter is on it.
    """
    if base.attached is not None:
        raise RuntimeError("an adapter is on the base: take it off first")
    if base.parallel.sharded:
        raise ModelError(
            "full fine-tuning of a base that is divided over several workers",
            expected="a base that is whole on one",
            remedy="leave the method 'full' out, or set ray.parallelism to none",
        )
    with _kept_aside(base), unfused(base):
        for parameter in base.model.parameters():
            parameter.data = parameter.data.to(torch.float32, copy=True)
            parameter.requires_grad_(True)
        yield FullWeights(base.model)


def save_full(base: BaseModel, file: Path) -> int:
    """Write the parameters that are on the base, in its own number format; returns the bytes.

    Raises:
        StorageError: the file cannot be written.
    """
    state = {name: p.detach().to("cpu", base.dtype) for name, p in base.model.named_parameters()}
    content = save(state, metadata={"format": "pt"})
    atomic_write(file, lambda draft: draft.write_bytes(content))
    return len(content)


@contextlib.contextmanager
def full_weights(base: BaseModel, file: Path | None) -> Iterator[None]:
    """Inside the block the base has the parameters of :func:`save_full`; with None, its own.

    Raises:
        StorageError: the file is damaged, or another model's.
    """
    if file is None:
        yield
        return
    own = dict(base.model.named_parameters())
    try:
        state = load_file(file)
        if {n: t.shape for n, t in state.items()} != {n: p.shape for n, p in own.items()}:
            raise ValueError("another model's")
    except (OSError, ValueError, SafetensorError) as error:
        raise StorageError(
            f"fine-tuned weights could not be read ({type(error).__name__})",
            where=file.parent.name,
            expected="all parameters of this base model",
            remedy="delete the folder, and they are trained again",
        ) from error
    with _kept_aside(base):
        for name, parameter in own.items():
            parameter.data = state[name].to(parameter.device, parameter.dtype)
        yield


@contextlib.contextmanager
def unfused(base: BaseModel) -> Iterator[None]:
    """Inside the block a base on a GPU has its modules' own functions.

    Fused ones have no gradients for the base's own parameters, and do not call the modules in
    which a LoRA is wrapped, so that hooks on these would not run.
    """
    if not base.fused:
        yield
        return
    fused = [(module, vars(module).pop("forward")) for module in base.model.modules() if _has_own(module)]
    base.fused = False
    try:
        yield
    finally:
        base.fused = True
        for module, forward in fused:
            module.forward = forward


def _has_own(module: nn.Module) -> bool:
    return "forward" in vars(module)


@contextlib.contextmanager
def _kept_aside(base: BaseModel) -> Iterator[None]:
    kept = [(parameter, parameter.data) for parameter in base.model.parameters()]
    try:
        yield
    finally:
        for parameter, data in kept:
            parameter.grad = None
            parameter.requires_grad_(False)
            parameter.data = data
