#!/usr/bin/env bash
# transformers 5.23.0 (5.5.0 does otherwise): a function that is given to `apply_chat_template` for
# the template does not arrive there.
#
# One would guess: keyword arguments become names of the template, so `strftime_now=frozen` puts a
# clock that stands still in the place of the one that templates with a date call (Llama 3.2,
# Mistral Small 3, gpt-oss). Up to 5.5.0 that is so.
# What happens: everything a template can see is rebuilt of plain JSON types first; a function
# becomes the text "<function>", and the call ends with TypeError: 'str' object is not callable. A
# macro of that name at the head of the template does take the function's place, in both versions.
# Why it matters here: who freezes the date of prompts, so that all workers and days train on the
# same tokens, has to change the template's text; milp_ray does (docs/prompts.md), and a server can
# be given that text, too.
#
# Seen on 2026-11-29:
#   transformers 5.5.0  argument: 1999  macro: 1999
#   transformers 5.23.0 argument: TypeError: 'str' object is not callable  macro: 1999
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >try.py <<'PY'
import sys

import transformers
from tokenizers import Tokenizer, models

tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
template = "{{ strftime_now('%Y') }}"
macro = "{%- macro strftime_now(format) -%}1999{%- endmacro %}\n"
turn = [{"role": "user", "content": "x"}]
try:
    given = tokenizer.apply_chat_template(
        turn, chat_template=template, tokenize=False, strftime_now=lambda text: "1999"
    )
except TypeError as error:
    given = f"TypeError: {error}"
by_macro = tokenizer.apply_chat_template(turn, chat_template=macro + template, tokenize=False)
print(f"transformers {transformers.__version__} argument: {given}  macro: {by_macro}")
sys.exit(by_macro != "1999" or (given == "1999") != (transformers.__version__ == "5.5.0"))
PY
for version in 5.5.0 5.23.0; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install -q --disable-pip-version-check "transformers==$version" jinja2==3.1.6
  "venv-$version/bin/python" try.py 2>/dev/null
done
