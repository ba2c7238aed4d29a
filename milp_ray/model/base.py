"""The base model of a study, loaded once and frozen; a trial borrows it and gives it back.

Covers loading the weights, the device they go to, and putting a saved memory on the model for a
while. Configuration and tokenizer are :mod:`milp_ray.model.pretrained`'s. A sharded base is read by
:mod:`milp_ray.model.streaming`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import masking_utils

from milp_ray.config.models import ModelSettings
from milp_ray.errors import ModelError
from milp_ray.memory import adapters
from milp_ray.memory.architectures import Architecture, architecture_of
from milp_ray.model.fused import adapt, fuse
from milp_ray.model.gguf_file import end_ids
from milp_ray.model.load_errors import translate_out_of_memory
from milp_ray.model.parallel.sharding import ALONE, Parallel, Root, shard_model
from milp_ray.model.pretrained import check_vocabulary, load_config, load_tokenizer
from milp_ray.model.requirements import check_requirements
from milp_ray.model.streaming import Weights, can_stream, locate_weights
from milp_ray.model.token_cache import TokenCache
from milp_ray.model.weights import from_pretrained

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_FIND_PACKED = "find_packed_sequence_indices"


@dataclass
class BaseModel:
    """A frozen causal language model with its tokenizer.

    Attributes:
        model: in eval mode; no parameter requires a gradient.
        tokenizer: of the same folder.
        architecture: its structure.
        device: of this rank.
        dtype: of its weights.
        settings: what it was loaded from.
        pad_id: fills batches; neither model nor loss see it, so any id will do.
        eos_id: ends a text in training.
        stop_ids: each ends a generated response.
        root: the module that token ids go through.
        parallel: the ranks that share it, and how.
        attached: the adapter that is on it now, if any.
        token_cache: texts encoded lately, so that the trials of one user encode them once.
        fused: whether it is whole on a GPU, with fused functions (:mod:`milp_ray.model.fused`), so
            that steps on it are captured if they can be.
        capturable: whether they can: its forward pass does not read from the GPU, and no capture
            has failed, except for want of memory.
    """

    model: nn.Module
    tokenizer: Any
    architecture: Architecture
    device: torch.device
    dtype: torch.dtype
    settings: ModelSettings
    pad_id: int
    eos_id: int
    stop_ids: frozenset[int]
    root: Root = field(init=False, repr=False)
    parallel: Parallel = field(default=ALONE, repr=False)
    attached: adapters.Attached | None = field(default=None, repr=False)
    token_cache: TokenCache = field(default_factory=TokenCache, repr=False)
    fused: bool = field(default=False, repr=False)
    capturable: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.root = Root(self.model)
        # The host chooses such rotations in every forward pass, by the longest position.
        rotations = (str(getattr(module, "rope_type", "")) for module in self.model.modules())
        self.capturable = not any("dynamic" in rotation for rotation in rotations)

    def fuse(self) -> None:
        """Fuse its functions if it is whole on a GPU. Once, when it is on its device."""
        if self.device.type == "cuda" and not self.parallel.sharded:
            fuse(self.model)
            self.fused = True

    def logits(self, select: Callable[[Tensor], Tensor], **inputs: Any) -> Tensor:
        """Logits ``k x v`` of ``k x h``, which ``select`` takes of ``B x T x h`` hidden states."""
        with self.autocast(), _unpacked():
            result: Tensor = self.root(select, **inputs)
        return result

    def measuring(self) -> contextlib.AbstractContextManager[object]:
        """A context without gradients, which is inference mode unless the base is sharded.

        A later training step could not use parameters that were gathered in inference mode.
        """
        return torch.no_grad() if self.parallel.sharded else torch.inference_mode()

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Mixed precision unless the base is fp32: its dtype for products, fp32 for LoRA weights.

        A fused base needs none: its LoRA modules convert dtypes themselves.
        """
        if self.dtype == torch.float32 or self.fused:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def attach(self, config: LoraConfig) -> adapters.Attached:
        """Put a fresh adapter on the model.

        Raises:
            RuntimeError: another one is on it.
        """
        return self._hold(adapters.attach(self.model, config))

    def attach_saved(self, folder: Path) -> adapters.Attached:
        """Put a saved adapter on the model.

        Raises:
            StorageError: the folder is damaged or does not fit the model.
            RuntimeError: another one is on it.
        """
        return self._hold(adapters.attach_saved(self.model, folder))

    def detach(self) -> None:
        """Take the adapter off, if there is one: the base is exactly as it was loaded."""
        if self.attached is not None:
            adapters.detach(self.model, self.attached)
            self.attached = None

    def _hold(self, attached: adapters.Attached) -> adapters.Attached:
        if self.fused:
            adapt(attached.layers.values())
        self.attached = attached
        return attached


def load_base(settings: ModelSettings, parallel: Parallel = ALONE) -> BaseModel:
    """Load a study's base model, frozen, on its device, or sharded over the ranks.

    Example:
        >>> base = load_base(ModelSettings(path=str(tiny_model), device="cpu"))
        >>> base.architecture.num_layers, base.dtype
        (4, torch.float32)
        >>> any(parameter.requires_grad for parameter in base.model.parameters())
        False

    Raises:
        ModelError: the configuration or the tokenizer is not usable
            (:mod:`milp_ray.model.pretrained`), a requirement is missing
            (:mod:`milp_ray.model.requirements`), the weights are missing or another model's, the
            tokenizer has more tokens than the model, there is no GPU where one was asked for, or
            the base is larger than it.
        StorageError: the storage of the files does not answer.
        ClusterError: the device or the host has no memory left for the base.
    """
    config = load_config(settings)
    check_requirements(settings, config)
    architecture = architecture_of(config)
    device = device_of(settings)
    dtype = _dtype(settings, device)
    tokenizer = load_tokenizer(settings)
    check_vocabulary(tokenizer, architecture)
    model, weights = _load_model(settings, config, dtype, parallel.sharded)
    eos = tokenizer.eos_token_id
    model.requires_grad_(False)
    model.eval()
    pad = tokenizer.pad_token_id
    base = BaseModel(
        model,
        tokenizer,
        architecture,
        device,
        dtype,
        settings,
        pad_id=eos if pad is None else pad,
        eos_id=eos,
        stop_ids=_stop_ids(model, eos) | end_ids(settings),
        parallel=parallel,
    )
    layers = (architecture.layer_name.format(layer=layer) for layer in range(architecture.num_layers))
    with translate_out_of_memory(model, device, parallel):
        shard_model(base.root, [model.get_submodule(name) for name in layers], device, parallel, weights)
        base.fuse()
    return base


@contextlib.contextmanager
def loaded(base: BaseModel, folder: Path) -> Iterator[BaseModel]:
    """The base with a saved memory on it, inside a ``with`` block.

    Raises:
        StorageError: the folder is damaged or does not fit the model.
        RuntimeError: another memory is on the model.
    """
    base.attach_saved(folder)
    try:
        yield base
    finally:
        base.detach()


def _load_model(
    settings: ModelSettings, config: Any, dtype: torch.dtype, sharded: bool
) -> tuple[Any, Weights | None]:
    """The model on the host, and None; or the model on the meta device, and its weights.

    The latter is for a model that is to be sharded and whose files allow it.
    """
    if sharded and can_stream(settings, config):
        model = from_pretrained(settings, config, dtype, device_map="meta")
        if weights := locate_weights(model, settings):
            return model, weights
    return from_pretrained(settings, config, dtype), None


def _stop_ids(model: Any, eos: int) -> frozenset[int]:
    """The tokenizer's end of text, and further ones of the model's generation settings."""
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = more if isinstance(more, list) else [more]
    return frozenset({eos, *(token for token in listed if isinstance(token, int))})


def device_of(settings: ModelSettings) -> torch.device:
    """Where a study's base model goes on this machine.

    Raises:
        ModelError: no GPU where one was asked for.
    """
    has_gpu = torch.cuda.is_available()
    if settings.device == "cuda" and not has_gpu:
        raise ModelError(
            "no GPU can be seen",
            where="model.device",
            remedy="set model.device to auto or cpu, or give trials a GPU (ray.gpus_per_worker)",
        )
    if not has_gpu or settings.device == "cpu":
        return torch.device("cpu")
    # With its index: process groups, and limits of a process's memory, need one.
    return torch.device("cuda", torch.cuda.current_device())


def _dtype(settings: ModelSettings, device: torch.device) -> torch.dtype:
    if settings.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[settings.dtype]


@contextlib.contextmanager
def _unpacked() -> Iterator[None]:
    """Inside the block, transformers does not look for rows that hold several texts: none does.

    Without an attention mask it looks at the positions, even at its own, and waits for the GPU in
    every forward pass. While a graph is captured it makes a mask instead, which rules out the fast
    attention.
    """
    own = getattr(masking_utils, _FIND_PACKED, None)
    if own is None:  # a version that does not look
        yield
        return
    setattr(masking_utils, _FIND_PACKED, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masking_utils, _FIND_PACKED, own)
