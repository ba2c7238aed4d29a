#!/usr/bin/env bash
# transformers 5.23.0: `revision` does not pin code that `auto_map` names in another repository, and
# `code_revision`, which does, moves the model's *own* code as well.
#
# One would guess: `from_pretrained(model, revision=COMMIT, trust_remote_code=True)` runs code of
# that commit alone, and a folder on the disk cannot change unless its files do.
# What happens: for a class named as "owner/name--module.Class" the code is that repository's
# *main*, whatever `revision` is, also for a folder, and also where the folder has a file of that
# name itself. With `code_revision=COMMIT` it is that commit; but then a hub model's own classes
# ("module.Class") are looked for at the same commit of the model's own repository, where it does
# not exist.
# Why it matters here: a run that is resumed, or a node that joins later, would run other code than
# the run began with, without a byte of the model having changed. So milp_ray refuses such models
# unless model.code_revision is set, and refuses models that name code of several repositories.
#
# Seen on 2026-11-29:
#   transformers 5.23.0
#   me/model with revision=1111…: code of me/model 1111
#   ./folder with revision=1111…: code of me/code 2222
#   ./folder with code_revision=1111…: code of me/code 1111
#   me/model with revision=1111…, code_revision=2222…: code of me/model 2222
#   me/model with revision=1111…, code_revision=3333…: code of nobody (OSError)
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check transformers==5.23.0 huggingface_hub==2.4.0
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python - <<'PY'
import json
import sys
from pathlib import Path

import transformers
from transformers import AutoConfig

FIRST, SECOND = "1" * 40, "2" * 40
CODE = "from transformers import LlamaConfig\nclass Own(LlamaConfig):\n    code = {!r}\n"


def model(folder, named, code):
    folder.mkdir(parents=True)
    values = {"model_type": "llama", "auto_map": {"AutoConfig": named}}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "own.py").write_text(CODE.format(code))
    return folder


def in_the_cache(name, named):
    """A repository of two commits; main is the second."""
    cache = Path("hf/hub") / f"models--{name.replace('/', '--')}"
    for commit in (FIRST, SECOND):
        model(cache / "snapshots" / commit, named, f"{name} {commit[:4]}")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(SECOND)


in_the_cache("me/code", "own.Own")
in_the_cache("me/model", "own.Own")
model(Path("folder"), "me/code--own.Own", "the folder's own")


def code_of(path, **words):
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=True, **words).code
    except OSError:
        return "nobody (OSError)"


print("transformers", transformers.__version__)
seen = []
for path, words in (
    ("me/model", {"revision": FIRST}),
    ("./folder", {"revision": FIRST}),
    ("./folder", {"code_revision": FIRST}),
    ("me/model", {"revision": FIRST, "code_revision": SECOND}),
    ("me/model", {"revision": FIRST, "code_revision": "3" * 40}),
):
    seen.append(code_of(path, **words))
    shown = ", ".join(f"{name}={value[:4]}…" for name, value in words.items())
    print(f"{path} with {shown}: code of {seen[-1]}")
sys.exit(seen != ["me/model 1111", "me/code 2222", "me/code 1111", "me/model 2222", "nobody (OSError)"])
PY
