"""An estimate of a trial's memory, from configurations alone, before anything is loaded.

For `milp-ray check`: the largest placement of the study, the longest texts, the full batch. It is
an estimate, not a bound. Does *not* cover sharding and activation checkpointing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from milp_ray.config.models import ModelSettings, Study
from milp_ray.memory.architectures import Architecture
from milp_ray.memory.space import MemorySpace, space_from

_BYTES = {"float32": 4, "bfloat16": 2}
# What autograd keeps of a layer for the backward pass with frozen base weights, per token, in
# widths of the hidden state and of the feed-forward part. Counted with saved_tensors_hooks: 5.9 and
# 4.0 for Llama, 5.8 and 5.0 for GPT-2, 6.3 and 2.0 for RoBERTa.
_HIDDEN_KEPT = 6
_INTERMEDIATE_KEPT = 5
# Besides what is kept: gradients and temporaries in flight.
_IN_FLIGHT = 1.5


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes that one trial takes on its device at the peak of a training step."""

    base: int
    lora: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.lora + self.activations


def estimate(architecture: Architecture, config: Any, study: Study) -> MemoryEstimate:
    """Memory of the largest trial that a study may run.

    - base: parameters of the model · bytes of its dtype;
    - lora: 16 bytes for every trainable parameter (fp32 weight, gradient and two Adam moments);
    - activations: B · T · (1.5 · bytes · L · (6 h + 5 i) + 12 v), for batches of B texts of T
      tokens, L layers of widths h and i (hidden, feed-forward), and v tokens in the vocabulary
      (logits, their copy and their gradient, in fp32).

    A measurement: a 12-layer Llama of widths 128 and 344 with 8 texts of 512 tokens and LoRAs of
    rank 96 everywhere, fp32 on a CPU, raised the peak resident size by 962 MiB; estimated are 892.

    Args:
        architecture: of the base model.
        config: its transformers configuration (:func:`milp_ray.model.pretrained.load_config`).
        study: for the memory space, the batch, the longest text and the dtype.
    """
    width = _BYTES[_dtype(study.model)]
    space = space_from(study.memory, architecture.num_layers, architecture.width)
    trained = architecture.trainable_params(space.placement(space.largest()))
    layer = _HIDDEN_KEPT * architecture.hidden_size + _INTERMEDIATE_KEPT * architecture.intermediate_size
    per_token = int(_IN_FLIGHT * width * architecture.num_layers * layer) + 12 * architecture.vocab_size
    tokens = study.optimizer.batch_size * study.prompts.max_length
    return MemoryEstimate(base_parameters(config) * width, 16 * trained, tokens * per_token)


def base_parameters(config: Any) -> int:
    """Number of parameters of a model, shared ones once, without allocating any."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def trainable_range(architecture: Architecture, space: MemorySpace) -> tuple[int, int]:
    """Fewest and most trainable parameters of the memories in a space."""
    low, high = space.extreme_placements()
    return architecture.trainable_params(low), architecture.trainable_params(high)


def _dtype(settings: ModelSettings) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    gpu = settings.device != "cpu" and torch.cuda.is_available()
    return "bfloat16" if gpu else "float32"
