#!/usr/bin/env bash
# transformers 5.23.0: `generate()` numbers the positions of a RoBERTa decoder from 0, a forward
# pass from padding id + 1.
#
# One would guess: the first token that greedy generate() gives is the argmax of a forward pass over
# the prompt.
# What happens: RobertaForCausalLM's forward pass numbers positions from pad_token_id + 1 = 2, as in
# pretraining; generate() makes position_ids of the attention mask, from 0, and hands them in.
# Position embeddings are learnt, so every generated token comes from a shifted model, without an
# error or a warning; rows 0 and 1 of the table were never trained.
# Why it matters here: whoever trains an adapter on a RoBERTa decoder (README, "A memory elsewhere")
# measures loss with one model and would generate with another. milp_ray's own decoding hands in the
# positions of the forward pass.
#
# Seen on 2026-11-29:
#   transformers 5.23.0, torch 2.13.0
#   largest difference of the next token's logits
#     generate() and a forward pass:                       7.0049
#     generate() and a forward pass with positions from 0: 0.0000
#     a forward pass and one with positions from 2:        0.0000
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cat >look.py <<'PYTHON'
import sys

import torch
import transformers
from transformers import RobertaConfig, RobertaForCausalLM

torch.manual_seed(0)
config = RobertaConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=66, is_decoder=True, initializer_range=1.0, pad_token_id=1,
)
model = RobertaForCausalLM(config).eval()
ids = torch.arange(5, 17)[None]
with torch.no_grad():
    forward = model(input_ids=ids).logits[:, -1]
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False,
        output_logits=True, return_dict_in_generate=True,
    ).logits[0]
    from_zero = model(input_ids=ids, position_ids=torch.arange(0, 12)[None]).logits[:, -1]
    from_two = model(input_ids=ids, position_ids=torch.arange(2, 14)[None]).logits[:, -1]
print(f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}")
print("largest difference of the next token's logits")
shifted, same, usual = ((a - b).abs().max().item() for a, b in ((made, forward), (made, from_zero), (forward, from_two)))
print(f"  generate() and a forward pass:                       {shifted:.4f}")
print(f"  generate() and a forward pass with positions from 0: {same:.4f}")
print(f"  a forward pass and one with positions from 2:        {usual:.4f}")
sys.exit(not (shifted > 0.1 and same < 1e-3 and usual < 1e-3))
PYTHON
venv/bin/python look.py
