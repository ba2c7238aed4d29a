#!/usr/bin/env bash
# transformers 5.23.0: a tokenizer.model of SentencePiece, where the package sentencepiece is
# missing, is said to need another package.
#
# One would guess: the error names sentencepiece, as LlamaTokenizer's own documentation does, or the
# file is read without it (protobuf alone can parse it).
# What happens: transformers falls back to reading the file as one of tiktoken, and the error says
# that tiktoken is required, also for a tokenizer_class of LlamaTokenizer. Who installs tiktoken
# then gets "Error parsing line". With sentencepiece (and protobuf) the same folder loads.
# Why it matters: folders of Llama's and Mistral's first models come so, without tokenizer.json; the
# remedy that users are given does not help, and nothing names the one that does. milp_ray looks at
# the file itself.
#
# Seen on 2026-11-29 (Python 3.11, Linux):
#   transformers 5.23.0, with ['sentencepiece']: loads, 90 tokens
#   transformers 5.23.0, with neither: ValueError: `tiktoken` is required to read a `tiktoken` file. Install it with `pip install tiktoken`.
#   transformers 5.23.0, with ['tiktoken']: ValueError: Error parsing line b'\x0e' in model/tokenizer.model
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
pip() { venv/bin/python -m pip -q --disable-pip-version-check "$@"; }
pip install transformers==5.23.0 sentencepiece==0.2.3 protobuf==7.36.2
cat > train.py <<'PY'
import json, pathlib, sentencepiece
folder = pathlib.Path("model"); folder.mkdir()
texts = [f"number {n} of many words, such as {chr(97 + n % 26) * 3} and tea" for n in range(300)]
with (folder / "tokenizer.model").open("wb") as file:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=file, vocab_size=90, model_type="bpe", minloglevel=2)
names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
(folder / "tokenizer_config.json").write_text(json.dumps(names))
(folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
PY
cat > load.py <<'PY'
import importlib.util, os
os.environ["HF_HUB_OFFLINE"] = "1"
import transformers
transformers.utils.logging.set_verbosity_error()
there = [name for name in ("sentencepiece", "tiktoken") if importlib.util.find_spec(name)]
try:
    said = f"loads, {len(transformers.AutoTokenizer.from_pretrained('model'))} tokens"
except Exception as error:
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
print(f"transformers {transformers.__version__}, with {there or 'neither'}: {said}")
PY
venv/bin/python train.py
venv/bin/python load.py | tee with.txt
pip uninstall -y sentencepiece
venv/bin/python load.py | tee without.txt
pip install tiktoken==0.14.0
venv/bin/python load.py | tee other.txt
grep -q 'loads, ' with.txt
grep -q 'tiktoken. is required' without.txt
if grep -q sentencepiece without.txt; then exit 1; fi
grep -q 'Error parsing line' other.txt
