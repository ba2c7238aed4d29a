"""llama.cpp on a GGUF model and adapter: llama_cpp.py MODEL ADAPTER IDS OUT."""

import json
import sys
from pathlib import Path

import xllamacpp

model, adapter, ids, out = sys.argv[1:]
parameters = xllamacpp.CommonParams()
parameters.model.path = model
parameters.n_ctx, parameters.n_gpu_layers, parameters.cpuparams.n_threads = 64, 0, 1
parameters.warmup, parameters.verbosity = False, 0
lora = xllamacpp.CommonAdapterLoraInfo()
lora.path, lora.scale = adapter, 1.0
parameters.lora_adapters = [lora]
asked = {
    "prompt": json.loads(ids),
    "n_predict": 1,
    "temperature": 0,
    "n_probs": 200,
    "post_sampling_probs": False,
}
answer = xllamacpp.Server(parameters).handle_completions(asked)
answer = answer if isinstance(answer, dict) else json.loads(answer)
top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
Path(out).write_text(json.dumps({one["id"]: one["logprob"] for one in top}))
