"""What a user's memory takes at inference: a prompt that grows, or parameters (paper, figure 3).

The paper's Eq. 5 adds up embeddings of the input, activations and attention for a memory that is
text in the prompt; its Eq. 6 is the size of the LoRAs. "The paper" is MiLP, docs/references.md:
Zhang 2024. It gives neither shapes nor number formats for Eq. 5, so :func:`prompt_memory` says what
it counts. :func:`measured_prompt_memory` asks the model at hand.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from milp_ray.memory.architectures import Architecture
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel


@dataclass(frozen=True, slots=True)
class PromptMemory:
    """The three terms of Eq. 5, in bytes.

    Attributes:
        embeddings: of the input: tokens x width.
        activations: the widest tensors that are alive at once in one layer; inference keeps no
            other layer's.
        attention: keys and values of all layers, which stay while the response is generated.
    """

    embeddings: int
    activations: int
    attention: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.embeddings + self.activations + self.attention


def prompt_memory(config: Any, tokens: int, bytes_per_value: int = 2) -> PromptMemory:
    """Eq. 5 for a prompt of so many tokens, with fused attention (no tokens x tokens matrix).

    Args:
        config: a model's transformers configuration.
        tokens: of the prompt.
        bytes_per_value: 2 for bfloat16, 4 for float32.

    >>> from transformers import LlamaConfig
    >>> llama_2_7b = LlamaConfig()  # its defaults are that model's shapes
    >>> prompt_memory(llama_2_7b, tokens=1024).attention // 2**20  # MiB, half of one a token
    512
    """
    width = config.hidden_size
    heads = config.num_attention_heads
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    head_width = getattr(config, "head_dim", None) or width // heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    per_token = 2 * config.num_hidden_layers * key_value_heads * head_width
    # The residual, and the feed-forward part's two inner tensors (gate and up, or before and after
    # the activation function).
    alive = width + 2 * inner
    return PromptMemory(*(tokens * bytes_per_value * values for values in (width, alive, per_token)))


def parameter_memory(architecture: Architecture, placement: Placement, bytes_per_value: int = 2) -> int:
    """Eq. 6, in bytes: the parameters of all LoRAs, which no further text of the user adds to."""
    return architecture.trainable_params(placement) * bytes_per_value


def measured_prompt_memory(base: BaseModel, tokens: int) -> int:
    """Peak bytes that a forward pass over a prompt of so many tokens allocates, its cache included.

    Args:
        base: on one rank.
        tokens: at most the model's context.

    Raises:
        ValueError: more tokens than the model's context, or none.
    """
    if not 0 < tokens <= base.architecture.context:
        raise ValueError(f"{tokens} tokens, but the model takes 1 to {base.architecture.context}")
    ids = torch.full((1, tokens), base.pad_id, device=base.device)
    positions = torch.arange(tokens, device=base.device)[None] + base.architecture.position_offset

    def prefill() -> None:
        with base.measuring():
            base.logits(_last, input_ids=ids, position_ids=positions, use_cache=True)

    prefill()  # what the first pass alone allocates is no prompt's
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(base.device)
        before = torch.cuda.memory_allocated(base.device)
        prefill()
        return torch.cuda.max_memory_allocated(base.device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler prints lines of its own
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        prefill()
    return _peak(found)


def parameters_of(config: Any) -> int:
    """Exact number of parameters of a model with this configuration, tied ones once.

    The model is built without memory for its weights.

    >>> from transformers import LlamaConfig
    >>> parameters_of(LlamaConfig()) // 10**6  # LLaMA2-7B
    6738
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _last(hidden: torch.Tensor) -> torch.Tensor:
    return hidden[:, -1]


def _peak(found: profile) -> int:
    """The largest sum of allocations minus releases, from the events of a trace, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    moves = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    now = peak = 0
    for _, size in sorted(moves, key=lambda move: float(move[0])):
        now += int(size)
        peak = max(peak, now)
    return peak
