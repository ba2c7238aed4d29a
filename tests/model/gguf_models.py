"""GGUF files of tiny models, written with llama.cpp's own package as its converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed (extra gguf)")

# Key of the metadata -> attribute of the configuration.
_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "vocab_size": "vocab_size",
}


def write_gguf(
    folder: Path,
    file: Path,
    *,
    kind: str = "F32",
    values: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    more: dict[str, np.ndarray[Any, Any]] | None = None,
) -> Path:
    """The model of a folder in a GGUF file.

    Args:
        folder: of a tiny Llama or Qwen with a byte-level tokenizer.
        file: to write.
        kind: how matrices are stored; others are F32.
        values: metadata over what the model has; None takes a key out.
        without: tensors that are left out.
        more: tensors that are added.
    """
    model = AutoModelForCausalLM.from_pretrained(folder)
    name = model.config.model_type
    writer = gguf.GGUFWriter(file, name)
    metadata = _metadata(model.config) | _vocabulary(folder) | (values or {})
    for key, value in metadata.items():
        if key == "general.architecture":  # the writer's own first
            writer.kv_data[0][key].value = value
        elif value is not None:
            _add(writer, key, value)
    quantisation = gguf.GGMLQuantizationType[kind]
    tensors = {key: array for key, array in _tensors(model).items() if key not in without} | (more or {})
    for key, array in tensors.items():
        if array.ndim == 1 or key in (more or {}):
            writer.add_tensor(key, array)
        else:
            writer.add_tensor(key, gguf.quantize(array, quantisation), raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _metadata(config: Any) -> dict[str, Any]:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found = {
        "general.name": "tiny",
        f"{config.model_type}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{config.model_type}.rope.dimension_count": head,
    }
    for key, name in _KEYS.items():
        if (value := getattr(config, name, None)) is not None:
            found[f"{config.model_type}.{key}"] = value
    return found


def _vocabulary(folder: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {added["id"] for added in content["added_tokens"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokenizer.convert_ids_to_tokens(range(len(tokenizer))),
        "tokenizer.ggml.token_type": [3 if n in special else 1 for n in range(len(tokenizer))],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.chat_template": tokenizer.chat_template,
    }


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _tensors(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Under llama.cpp's names; a Llama's queries and keys in its order."""
    config = model.config
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    found = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, ending = name.rpartition(".")
        array = tensor.detach().to(torch.float32).numpy()
        if config.model_type == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if "q_proj" in stem else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
        found[f"{names.get_name(stem)}.{ending}"] = np.ascontiguousarray(array)
    return found
