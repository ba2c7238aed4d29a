"""The weights of a base in a GGUF file, as transformers dequantises them: a plain model of floats.

Transformers leaves out tensors that it has no place for, and does so without a word: biases of
attention, say. They are an error here, found by the header. What it leaves out that can be made up
for is made up for: factors of the rotations. Does *not* cover what reads the header
(:mod:`milp_ray.model.gguf_file`); configuration and tokenizer are
:mod:`milp_ray.model.pretrained`'s.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from milp_ray.errors import ModelError
from milp_ray.model.gguf_file import header_of, quick_reader

# Factors of the rotary frequencies (Llama 3.1 and later): the configuration has no place for them.
_FACTORS = "rope_freqs.weight"
_EXPECTED = "the tensors of its architecture, as transformers has it"
_REMEDY = "name another file, or the folder of the model that it was made from"


def check_tensors(file: Path, model: Any) -> None:
    """Check that a GGUF file holds the tensors of a model, all of them and no others.

    Args:
        file: whose header is read.
        model: of its configuration; on the meta device, say.

    Raises:
        ModelError: a tensor is missing, has no place in the model, or has another shape.
    """
    tensors = header_of(file).tensors
    places = _places(file, model)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    missing = [name for name, place in places.items() if name not in tensors and place not in tied]
    if missing:
        raise _misfit(f"{file.name} lacks {len(missing)} tensors, such as {missing[0]!r}")
    if others := [name for name in tensors if name not in places and name != _FACTORS]:
        raise _misfit(
            f"{file.name} holds {len(others)} tensors that the model has no place for, such as "
            f"{others[0]!r}: transformers would leave them out"
        )
    for name, sizes in tensors.items():
        # Some are transposed on the way.
        if name in places and sorted(sizes) != sorted(shape := shapes[places[name]]):
            fact = f"of {_shape(sizes)} numbers, where the model has {_shape(shape)}"
            raise _misfit(f"{file.name} has {name!r} {fact}")


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Inside the block, transformers reads GGUF files quickly and without a bar of its own.

    For each of a model's modules it asks for all names of all tensors anew: of 397 modules 10 s.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils

    bar, names = modeling_gguf_pytorch_utils.tqdm, gguf.get_tensor_name_map
    modeling_gguf_pytorch_utils.tqdm = lambda tensors, **_: tensors
    gguf.get_tensor_name_map = functools.cache(names)
    try:
        with quick_reader():
            yield
    finally:
        modeling_gguf_pytorch_utils.tqdm, gguf.get_tensor_name_map = bar, names


def make_plain(model: Any, file: Path, path: str) -> None:
    """Make a model that was read from a GGUF file one like any other: its weights are floats now.

    Args:
        model: on the host; changed.
        file: it was read from.
        path: what the study calls it.
    """
    model.name_or_path = model.config.name_or_path = path
    if _FACTORS in header_of(file).tensors:
        _scale_rotations(model, _factors(file))


def _scale_rotations(model: Any, factors: torch.Tensor) -> None:
    """Divide the rotary frequencies by the factors, as llama.cpp does in every step."""
    for module in model.modules():
        for name in ("inv_freq", "original_inv_freq"):
            frequencies = getattr(module, name, None)
            if isinstance(frequencies, torch.Tensor):
                frequencies.div_(factors.to(frequencies))


def _factors(file: Path) -> torch.Tensor:
    import gguf

    with quick_reader():
        reader = gguf.GGUFReader(file)
    found = next(tensor for tensor in reader.tensors if tensor.name == _FACTORS)
    return torch.from_numpy(np.array(gguf.dequantize(found.data, found.tensor_type)))


def _places(file: Path, model: Any) -> Mapping[str, str]:
    """Name of a tensor in the file -> its name in the model."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    kind = TENSOR_PROCESSORS.get(header_of(file).architecture, TensorProcessor)
    with reading():
        places: dict[str, str] = get_gguf_hf_weights_map(model, kind(config=model.config.to_dict()))
    return places


def _misfit(fact: str) -> ModelError:
    return ModelError(
        fact,
        where="model.path",
        expected="the tensors of its architecture, as transformers has it",
        remedy=_REMEDY,
    )


def _shape(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))
