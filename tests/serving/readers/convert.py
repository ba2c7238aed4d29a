"""Runs one of llama.cpp's converters: convert.py SOURCES SCRIPT [ARGUMENT ...].

The converters refuse a BPE tokenizer whose hash they do not know. The tests hand in token ids, so
any known name does.
"""

import runpy
import sys

sources, script = sys.argv[1:3]
sys.path[:0] = [sources, f"{sources}/gguf-py"]
from conversion import base  # noqa: E402

base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
sys.argv = [script, *sys.argv[3:]]
runpy.run_path(f"{sources}/{script}", run_name="__main__")
