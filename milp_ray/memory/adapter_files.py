"""An adapter's two files as plain values, without torch: ten thousand fit into a small process.

What the files hold is PEFT's layout: A is ``r x in``, B ``out x r``, under names that end with
``.lora_A.weight`` and ``.lora_B.weight``. Numbers stay bytes of whatever type they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, TensorSpec, deserialize, serialize

from milp_ray.errors import StorageError
from milp_ray.layout import ADAPTER_CONFIG
from milp_ray.memory.adapter_notes import check_content

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# Of a configuration, what milp_ray writes; earlier versions of it wrote PEFT's defaults as well,
# which other versions of PEFT refuse.
_KEPT = (
    "alpha_pattern",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
)
_ALWAYS = ("base_model_name_or_path", "lora_alpha", "peft_type", "r", "target_modules", "task_type")

# What a file's header calls a type, and what its writer calls it.
_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

Config = dict[str, Any]


@dataclass(frozen=True)
class RawTensor:
    """A matrix as a file holds it.

    Attributes:
        dtype: as in a file's header: "F32".
        rows: ``n x bytes of a row``.
        columns: numbers of a row.
    """

    dtype: str
    rows: np.ndarray[Any, np.dtype[np.uint8]]
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows), self.columns

    @property
    def _size(self) -> int:
        return int(self.rows.shape[1]) // self.columns

    def padded(self, rows: int, columns: int) -> RawTensor:
        """With zeros below and to the right; zero bytes are zeros of every floating-point type."""
        more = ((0, rows - len(self.rows)), (0, (columns - self.columns) * self._size))
        return RawTensor(self.dtype, np.pad(self.rows, more), columns)

    def zeros(self, rows: int, columns: int) -> RawTensor:
        """Of the same type."""
        return RawTensor(self.dtype, np.zeros((rows, columns * self._size), np.uint8), columns)


Tensors = dict[str, RawTensor]


@contextmanager
def opened(folder: Path) -> Iterator[Config]:
    """A saved adapter's configuration; what goes wrong inside the block is damage of its files.

    Raises:
        StorageError: a file is missing or damaged, or it is not a LoRA adapter.
        RunFolderError: its files are not those that its note was written for.
    """
    try:
        check_content(folder)
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        if config["peft_type"] != "LORA":
            raise ValueError("not a LoRA adapter")
        yield config
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise StorageError(
            f"an adapter could not be read ({type(error).__name__})",
            where=folder.name,
            expected=f"{ADAPTER_CONFIG} and {WEIGHTS} as PEFT writes them",
            remedy="restore the folder, or train the memory again",
        ) from error


def read_files(folder: Path) -> tuple[Config, Tensors]:
    """Configuration and matrices of a saved adapter.

    Raises:
        StorageError, RunFolderError: as :func:`opened`.
    """
    with opened(folder) as config:
        found = deserialize((folder / WEIGHTS).read_bytes())  # type: ignore[no-untyped-call]
        return config, {name: _raw(**values) for name, values in found}


def file_contents(config: Mapping[str, Any], tensors: Mapping[str, RawTensor]) -> dict[str, bytes]:
    """The contents of the two files, by name, the configuration last."""
    kept = {name: config[name] for name in _KEPT if config.get(name) or name in _ALWAYS}
    rows = {name: np.ascontiguousarray(tensor.rows) for name, tensor in tensors.items()}  # kept alive
    specs = {
        name: TensorSpec(
            dtype=_TYPES[tensor.dtype],
            shape=list(tensor.shape),
            data_ptr=rows[name].ctypes.data,
            data_len=rows[name].nbytes,
        )
        for name, tensor in tensors.items()
    }
    return {
        WEIGHTS: bytes(serialize(specs, {"format": "pt"})),
        ADAPTER_CONFIG: (json.dumps(kept, indent=2, sort_keys=True) + "\n").encode(),
    }


def _raw(dtype: str, shape: list[int], data: bytes) -> RawTensor:
    rows, columns = shape
    if dtype not in _TYPES:
        raise ValueError("numbers of another type")
    return RawTensor(dtype, np.frombuffer(data, np.uint8).reshape(rows, -1), columns)
