"""Llamas with random weights for benchmarks: what is timed depends on their sizes alone.

They are saved to a folder, for what loads a base as the product does, or made on the spot on a
device. Their tokenizer makes one token of a byte. They know nothing: their losses tell whether two
ways of training do the same work, and not whether the work is any good.
"""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milp_ray.model.base import BaseModel

# hidden size, feed-forward size, layers, heads, vocabulary
SIZES = {
    "tiny": (128, 344, 12, 4, 4096),
    "100m": (768, 2048, 12, 12, 8192),
    "400m": (1280, 3456, 18, 20, 8192),
    "7b": (4096, 11008, 32, 32, 32000),
}


def config_of(size: str) -> Any:
    """The transformers configuration of a size; "7b" is that of LLaMA2-7B."""
    from transformers import LlamaConfig

    hidden, feed_forward, layers, heads, vocabulary = SIZES[size]
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def tokenizer() -> Any:
    """One token a byte, and three special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def save_random(folder: Path, size: str) -> Path:
    """A folder for ``from_pretrained``, fp32."""
    import torch
    from transformers import LlamaForCausalLM

    from milp_ray.model.quiet import no_progress_bar

    tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    with no_progress_bar():
        LlamaForCausalLM(config_of(size)).save_pretrained(folder)
    return folder


def random_base(size: str, device: str) -> BaseModel:
    """A base made on its device, without files: bf16 on a GPU, fp32 on a CPU; not fused yet."""
    import torch
    from transformers import LlamaForCausalLM

    from milp_ray.config.models import ModelSettings
    from milp_ray.memory.architectures import architecture_of
    from milp_ray.model.base import BaseModel

    config, dtype = config_of(size), torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.requires_grad_(False)
    model.eval()
    return BaseModel(
        model,
        tokenizer(),
        architecture_of(config),
        torch.device(device),
        dtype,
        ModelSettings(path=f"random-{size}", device="cuda" if device == "cuda" else "cpu"),
        pad_id=0,
        eos_id=2,
        stop_ids=frozenset({2}),
    )


def texts(count: int, length: int, seed: int = 0) -> tuple[str, ...]:
    """Texts of ``length`` random characters."""
    draw = random.Random(seed)
    return tuple("".join(draw.choices(string.ascii_letters + " ", k=length)) for _ in range(count))
