"""Where a memory goes in each model: its feed-forward modules, by exact name (Eq. 1 of the paper).

One entry per ``config.model_type``, worked out from the model's configuration alone, so that counts
and names are known before any weight is loaded. Does *not* cover attention modules, which the
method leaves alone, nor the making of LoRA modules (:mod:`milp_ray.memory.adapters`).

To add an architecture, write a function that takes the transformers configuration and returns the
facts of :class:`Architecture`, and decorate it with :func:`register`; the tests in tests/memory
then check it against the built model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from milp_ray.errors import ModelError, SpaceError
from milp_ray.memory.placement import Placement
from milp_ray.registry import Registry


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """A linear module that can carry a LoRA: name from the model's root, and its two widths."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Architecture:
    """What the rest of milp_ray knows of a base model's structure.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(num_hidden_layers=2, hidden_size=32, intermediate_size=64)
        >>> llama = architecture_of(config)
        >>> [module.name.removeprefix("model.layers.1.") for module in llama.modules(1)]
        ['mlp.gate_proj', 'mlp.up_proj', 'mlp.down_proj']
        >>> llama.trainable_params(Placement(((1, 4),)))  # rank 4: 4·(32 + 64) on each of three
        1152

    Attributes:
        model_type: as in the model's config.json.
        num_layers: transformer layers.
        context: the most tokens of one text.
        vocab_size: rows of the embedding.
        hidden_size: width between layers.
        intermediate_size: width inside the feed-forward part.
        position_offset: position id of the first token (RoBERTa counts from its padding id + 1).
        transposed: whether the weights are stored input x output (GPT-2's Conv1D).
        layer_name: name of a layer from the model's root, with ``{layer}``.
        parts: the adapted modules of a layer: name inside the layer, and whether it widens the
            hidden state.
    """

    model_type: str
    num_layers: int
    context: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layer_name: str
    parts: tuple[tuple[str, bool], ...]
    position_offset: int = 0
    transposed: bool = False

    @property
    def width(self) -> int:
        """The smallest dimension of any adapted module: the largest rank that can add anything."""
        return min(self.hidden_size, self.intermediate_size)

    def modules(self, layer: int) -> tuple[ModuleShape, ...]:
        """The modules of a layer that carry its LoRA.

        Raises:
            SpaceError: the model has no such layer.
        """
        if not 0 <= layer < self.num_layers:
            raise SpaceError(
                f"layer {layer} of a model with {self.num_layers} layers",
                expected=f"0 to {self.num_layers - 1}",
                remedy="use a placement that was made for this base model",
            )
        root = self.layer_name.format(layer=layer)
        narrow, wide = self.hidden_size, self.intermediate_size
        return tuple(
            ModuleShape(f"{root}.{part}", *((narrow, wide) if widens else (wide, narrow)))
            for part, widens in self.parts
        )

    def trainable_params(self, placement: Placement) -> int:
        """Exact number of trained parameters: rank · (in + out) for every adapted module.

        Raises:
            SpaceError: the placement names a layer that the model does not have.
        """
        return sum(
            rank * (module.in_features + module.out_features)
            for layer, rank in placement.ranks
            for module in self.modules(layer)
        )


_Builder = Callable[[Any], Architecture]
_REGISTRY: Registry[_Builder] = Registry("architecture")
register = _REGISTRY.register
architecture_names = _REGISTRY.names


def architecture_of(config: Any) -> Architecture:
    """The architecture of a transformers configuration (any object with its attributes).

    Raises:
        ModelError: the model type is not registered, or the configuration lacks a needed value.
    """
    model_type = getattr(config, "model_type", None)
    builder = _REGISTRY.find(model_type)
    if builder is None:
        raise ModelError(
            f"architecture {model_type!r} is not supported",
            where="model.path",
            expected=f"one of {', '.join(architecture_names())}",
            remedy="use a supported base model, or add an entry for it to milp_ray/memory/architectures.py "
            "(a function that names the feed-forward modules of a layer, decorated with @register)",
        )
    try:
        return builder(config)
    except (AttributeError, TypeError) as error:
        raise ModelError(
            f"the configuration of this {model_type} model is incomplete ({error})",
            where="model.path",
            remedy="check the model's config.json",
        ) from error


@register("llama", "mistral", "qwen2", "qwen3")
def _llama_like(config: Any) -> Architecture:
    return Architecture(
        model_type=config.model_type,
        num_layers=config.num_hidden_layers,
        context=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        layer_name="model.layers.{layer}",
        parts=(("mlp.gate_proj", True), ("mlp.up_proj", True), ("mlp.down_proj", False)),
    )


@register("gpt2")
def _gpt2(config: Any) -> Architecture:
    return Architecture(
        model_type=config.model_type,
        num_layers=config.n_layer,
        context=config.n_positions,
        vocab_size=config.vocab_size,
        hidden_size=config.n_embd,
        intermediate_size=config.n_inner or 4 * config.n_embd,
        layer_name="transformer.h.{layer}",
        parts=(("mlp.c_fc", True), ("mlp.c_proj", False)),
        transposed=True,
    )


@register("roberta")
def _roberta(config: Any) -> Architecture:
    offset = config.pad_token_id + 1
    return Architecture(
        model_type=config.model_type,
        num_layers=config.num_hidden_layers,
        context=config.max_position_embeddings - offset,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        layer_name="roberta.encoder.layer.{layer}",
        parts=(("intermediate.dense", True), ("output.dense", False)),
        position_offset=offset,
    )
