#!/usr/bin/env bash
# transformers 5.23.0, a base read from a GGUF file: the tokenizer may split text otherwise than the
# file says, has a token that the file has not, and tensors without a place are left out, each
# without a word.
#
# One would guess: what is in the file is loaded, or it is said what is not.
# What happens: `tokenizer.ggml.pre`, which names the way to split text, is looked up in a short
# list, and whatever is not in it is split as GPT-2's. `smollm`, of SmolLM's own files, sets every
# digit apart, and is not in it: "12" stays one token, and two line breaks become two. Every
# byte-level tokenizer gets GPT-2's `<|endoftext|>` where it is missing, with an id that the
# embedding has no row for. Biases of a Llama's attention, which llama.cpp reads, are dropped, while
# missing and unexpected keys are both reported as none.
# Why it matters here: a memory is trained on one tokenizer and one model, and served on llama.cpp
# with others. milp_ray mends the first two and refuses such tensors (docs/models.md).
#
# Seen on 2026-11-30:
#   transformers 5.23.0
#   gguf 0.19.0
#   torch 2.13.0
#   'a\n\n12' where digits stand alone: ['a', 'Ċ', 'Ċ', '12']
#   tokens in the file: 261, in the tokenizer: 262, added: ['<|endoftext|>']
#   rows of the embedding: 261
#   logits with attention biases of 3 are those without: True; missing or unexpected: []
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.14.0
cat >look.py <<'PYTHON'
import importlib.metadata
import sys

import gguf
import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()
WIDTH, HEADS, INNER = 32, 2, 64


def byte_letters():
    """GPT-2's 256 letters for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + place) for place in range(len(others))]


TOKENS = ["<pad>", "<s>", "</s>", *byte_letters(), "ĊĊ", "12"]


def write(path, pre="smollm", biases=False):
    rng = np.random.default_rng(0)
    random = lambda *shape: rng.normal(0, 0.2, shape).astype(np.float32)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(["Ċ Ċ", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_tensor("token_embd.weight", random(len(TOKENS), WIDTH))
    writer.add_tensor("output.weight", random(len(TOKENS), WIDTH))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", random(WIDTH, WIDTH))
    writer.add_tensor("blk.0.ffn_gate.weight", random(INNER, WIDTH))
    writer.add_tensor("blk.0.ffn_up.weight", random(INNER, WIDTH))
    writer.add_tensor("blk.0.ffn_down.weight", random(WIDTH, INNER))
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("blk.0.ffn_norm.weight", np.ones(WIDTH, np.float32))
    if biases:
        for name in ("attn_q", "attn_k", "attn_v"):
            writer.add_tensor(f"blk.0.{name}.bias", np.full(WIDTH, 3.0, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


write("plain.gguf")
write("biases.gguf", biases=True)
tokenizer = AutoTokenizer.from_pretrained(".", gguf_file="plain.gguf")
pieces = tokenizer.convert_ids_to_tokens(tokenizer("a\n\n12", add_special_tokens=False).input_ids)
model = AutoModelForCausalLM.from_pretrained(".", gguf_file="plain.gguf")
biased, info = AutoModelForCausalLM.from_pretrained(".", gguf_file="biases.gguf", output_loading_info=True)
ids = tokenizer("a 12", return_tensors="pt").input_ids
same = bool((model(ids).logits == biased(ids).logits).all())
for name in ("transformers", "gguf", "torch"):
    print(name, importlib.metadata.version(name).partition("+")[0])
print(f"'a\\n\\n12' where digits stand alone: {pieces}")
print(f"tokens in the file: {len(TOKENS)}, in the tokenizer: {len(tokenizer)}, added: {sorted(set(tokenizer.get_vocab()) - set(TOKENS))}")
print(f"rows of the embedding: {model.get_input_embeddings().weight.shape[0]}")
keys = [*info["missing_keys"], *info["unexpected_keys"]]
print(f"logits with attention biases of 3 are those without: {same}; missing or unexpected: {keys}")
found = (pieces, len(tokenizer) - len(TOKENS), same, keys)
sys.exit(found != (["a", "Ċ", "Ċ", "12"], 1, True, []))
PYTHON
HF_HUB_OFFLINE=1 venv/bin/python look.py 2>errors || { cat errors; echo "changed"; exit 1; }
