"""onnxruntime-genai on a built model, which holds the adapter: onnx_genai.py MODEL - IDS OUT."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai

model, _, ids, out = sys.argv[1:]
loaded = onnxruntime_genai.Model(model)
parameters = onnxruntime_genai.GeneratorParams(loaded)
parameters.set_search_options(max_length=64)
generator = onnxruntime_genai.Generator(loaded, parameters)
generator.append_tokens(np.asarray(json.loads(ids), dtype=np.int32))
logits = np.asarray(generator.get_logits(), dtype=np.float64).reshape(-1)
shifted = logits - logits.max()
found = shifted - np.log(np.exp(shifted).sum())
Path(out).write_text(json.dumps(dict(enumerate(found.tolist()))))
