#!/usr/bin/env bash
# llama.cpp (xllamacpp 2026.10.11549, converter of llama-cpp-python 0.3.36): a LoRA whose modules have
# ranks of their own is converted and applied without a word, at the wrong strength.
#
# One would guess: convert_lora_to_gguf.py, which takes PEFT's two files, either keeps what
# rank_pattern and alpha_pattern say or refuses them.
# What happens: a GGUF adapter has one alpha, that of adapter_config.json, and llama.cpp scales each
# tensor by it over the tensor's own rank. With alpha / rank = 1 everywhere in PEFT, a module of rank 4
# beside one of rank 32 is applied at 32 / 4 = 8 times its strength. Padding the lesser ranks with
# zeros to the largest one, and leaving the patterns out, gives the right function.
# Why it matters here: four searched placements in ten have several ranks; `milp-ray export --for
# llama.cpp` pads them.
#
# Seen on 2026-11-30:
#   xllamacpp 2026.10.11549, llama-cpp-python 0.3.36, peft 0.21.2, transformers 5.23.0
#   largest difference to PEFT of the next token's log-probability, of 100 tokens
#     as PEFT writes it (ranks 4 and 32): 4.120 nats
#     padded to rank 32:                  0.005 nats
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
pip=(venv/bin/pip -q --disable-pip-version-check)
"${pip[@]}" install torch==2.13.0 transformers==5.23.0 peft==0.21.2 sentencepiece==0.2.1 \
  xllamacpp==2026.10.11549
"${pip[@]}" download --no-deps --no-binary :all: llama-cpp-python==0.3.36
tar xzf llama_cpp_python-0.3.36.tar.gz --strip-components=3 --wildcards \
  '*/vendor/llama.cpp/convert_*_to_gguf.py' '*/vendor/llama.cpp/conversion/*' '*/vendor/llama.cpp/gguf-py/*'
cat >make.py <<'PYTHON'
"""A tiny Llama, a LoRA of two ranks, and the same one padded; PEFT's answer."""
import json
import shutil

import peft
import sentencepiece
import torch
import transformers
from safetensors.torch import load_file, save_file

open("text", "w").write("".join(f"word{i} and some more of them, {i * i}\n" for i in range(2000)))
sentencepiece.SentencePieceTrainer.train(
    input="text", model_prefix="spm", vocab_size=320, minloglevel=2
)
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=128, initializer_range=0.2,
)
transformers.LlamaForCausalLM(config).save_pretrained("base")
shutil.copy("spm.model", "base/tokenizer.model")
names = [f"model.layers.{i}.mlp.{part}_proj" for i in range(2) for part in ("gate", "up", "down")]
low = dict.fromkeys(names[:3], 4)
lora = peft.LoraConfig(
    r=32, lora_alpha=32, target_modules=names, rank_pattern=low, alpha_pattern=low, task_type="CAUSAL_LM"
)
model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained("base"), lora)
for name, parameter in model.named_parameters():
    if "lora_B" in name:
        parameter.data.copy_(0.3 * torch.randn(parameter.shape))
model.save_pretrained("mixed")
shutil.copytree("mixed", "padded")
values = json.load(open("padded/adapter_config.json"))
json.dump(values | {"rank_pattern": {}, "alpha_pattern": {}}, open("padded/adapter_config.json", "w"))
tensors = load_file("mixed/adapter_model.safetensors")
for name, tensor in tensors.items():
    rows, columns = (32, tensor.shape[1]) if "lora_A" in name else (tensor.shape[0], 32)
    padded = torch.zeros(rows, columns)
    padded[: tensor.shape[0], : tensor.shape[1]] = tensor
    tensors[name] = padded
save_file(tensors, "padded/adapter_model.safetensors", {"format": "pt"})
ids = [5, 90, 33, 100, 20, 7, 300, 12]
with torch.no_grad():
    expected = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1)
json.dump({"ids": ids, "expected": expected.tolist()}, open("expected.json", "w"))
print(f"peft {peft.__version__}, transformers {transformers.__version__}")
PYTHON
cat >look.py <<'PYTHON'
import json
import sys
from importlib.metadata import version

import xllamacpp

given = json.load(open("expected.json"))
found = {}
for name in ("mixed", "padded"):
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_gpu_layers = "base.gguf", 64, 0
    parameters.warmup, parameters.verbosity = False, 0
    lora = xllamacpp.CommonAdapterLoraInfo()
    lora.path, lora.scale = f"{name}.gguf", 1.0
    parameters.lora_adapters = [lora]
    asked = {"prompt": given["ids"], "n_predict": 1, "temperature": 0, "n_probs": 100}
    answer = xllamacpp.Server(parameters).handle_completions(asked)
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    found[name] = max(abs(one["logprob"] - given["expected"][one["id"]]) for one in top)
print(f"xllamacpp {version('xllamacpp')}, llama-cpp-python 0.3.36")
print("largest difference to PEFT of the next token's log-probability, of 100 tokens")
print(f"  as PEFT writes it (ranks 4 and 32): {found['mixed']:.3f} nats")
print(f"  padded to rank 32:                  {found['padded']:.3f} nats")
sys.exit(not (found["mixed"] > 0.5 and found["padded"] < 0.02))
PYTHON
venv/bin/python make.py
venv/bin/python convert_hf_to_gguf.py base --outfile base.gguf --outtype f32 2>log || { cat log; exit 1; }
for form in mixed padded; do
  venv/bin/python convert_lora_to_gguf.py "$form" --base base --outfile "$form.gguf" --outtype f32 2>log ||
    { cat log; exit 1; }
done
venv/bin/python look.py
