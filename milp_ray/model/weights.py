"""The weights of a base model, read by transformers and checked against its configuration.

Transformers fills missing tensors with random numbers, leaves out unexpected ones, and only warns;
here both are errors that name a tensor. On the meta device only the files' headers are read, so a
base of any size is checked in a moment.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, GgufConfig

from milp_ray.config.models import ModelSettings
from milp_ray.errors import ModelError, own_words
from milp_ray.memory.architectures import Architecture, architecture_of
from milp_ray.model.gguf_file import gguf_of
from milp_ray.model.gguf_weights import check_tensors, make_plain
from milp_ray.model.load_errors import translate_load_errors
from milp_ray.model.pretrained import source
from milp_ray.model.quiet import no_load_report, no_progress_bar
from milp_ray.model.requirements import file_of

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_EXPECTED = "weights of the architecture in config.json"
_REMEDY = "fetch the model again, or correct model.path"
# How PEFT names the modules that it adds to a model, and those that it wraps.
_ADAPTER = re.compile(r"\blora_|\.base_layer\.|^base_model\.model\.|\bmodules_to_save\b")


def from_pretrained(settings: ModelSettings, config: Any, dtype: torch.dtype, **more: Any) -> Any:
    """The base model with its weights, all of them and no others.

    Args:
        settings, config: of the model.
        dtype: of its weights.
        more: for transformers, such as ``device_map="meta"``, with which no weight is read.

    Raises:
        ModelError: the files lack tensors, have other shapes, further layers or an adapter, or
            cannot be read; or a package is missing.
        StorageError, ClusterError: see :func:`milp_ray.model.load_errors.check_transient`.
    """
    file = gguf_of(settings)
    with translate_load_errors(settings.path), _by_file(settings), no_progress_bar(), no_load_report():
        if file is not None:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
            check_tensors(file, model)
            if more.get("device_map") == "meta":
                return model
            # Without it they stay as they are stored where the package kernels is there.
            more["quantization_config"] = GgufConfig(dequantize=True)
        with source(settings) as arguments:
            model, info = AutoModelForCausalLM.from_pretrained(
                config=config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # _check_names names them
                **more,
                **arguments,
            )
    if file is not None:
        make_plain(model, file, settings.path)
    _check_names(settings, info, architecture_of(config))
    _check_bare(model)
    return model


def has_local_weights(settings: ModelSettings) -> bool:
    """Whether this machine has the weights: in a folder, a GGUF file, or all in the hub's cache."""
    return Path(settings.path).exists() or bool(weight_files(settings))


def weight_files(settings: ModelSettings) -> list[Path]:
    """All the model's safetensors files; none if it has others, or one of them is missing."""
    if one := file_of(settings, _ONE):
        return [one]
    files = [file_of(settings, shard) for shard in _shards(settings)]
    return [file for file in files if file is not None] if all(files) else []


def _shards(settings: ModelSettings) -> list[str]:
    """The names of the files in the index of the model's weights; none where it has no index."""
    index = file_of(settings, _INDEX)
    if index is None:
        return []
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


@contextlib.contextmanager
def _by_file(settings: ModelSettings) -> Iterator[None]:
    """Inside the block, errors of reading name the file: safetensors' own name none.

    Raises:
        ModelError: a file is damaged or missing.
    """
    try:
        yield
    except (SafetensorError, FileNotFoundError) as error:
        for name in _shards(settings) or ([_ONE] if file_of(settings, _ONE) else []):
            if (fault := _fault_of(file_of(settings, name))) is not None:
                raise ModelError(
                    f"{name} of the weights at {settings.path!r} {fault}",
                    where="model.path",
                    expected="every file of the weights, as it was released",
                    remedy="fetch that file again, or correct model.path",
                ) from error
        raise


def _fault_of(file: Path | None) -> str | None:
    """The fault of a file of weights, by its header and size; None where it has none."""
    if file is None:
        return "is not there"
    try:
        with safe_open(file, framework="pt"):
            return None
    except SafetensorError as error:
        return f"is cut or damaged ({file.stat().st_size:,} bytes; {own_words(error)})"


def _check_names(settings: ModelSettings, info: Mapping[str, Any], architecture: Architecture) -> None:
    """Raise what ``from_pretrained`` only warns of."""
    unexpected = sorted(info["unexpected_keys"])
    if adapter := [key for key in unexpected if _ADAPTER.search(key)]:
        raise ModelError(
            f"the weights at {settings.path!r} hold an adapter, which would be left out ({adapter[0]!r})",
            where="model.path",
            expected=_EXPECTED,
            remedy="merge the adapter into the base first (PEFT: merge_and_unload), and save that",
        )
    if missing := sorted(info["missing_keys"]):
        raise _misfit(f"the weights at {settings.path!r} lack {len(missing)} tensors, such as {missing[0]!r}")
    if others := sorted(
        (str(key), tuple(in_file), tuple(in_model)) for key, in_file, in_model in info["mismatched_keys"]
    ):
        name, in_file, in_model = others[0]
        raise _misfit(
            f"{len(others)} tensors of the weights at {settings.path!r} have other shapes than config.json "
            f"says, such as {name!r}: {_shape(in_file)}, not {_shape(in_model)}"
        )
    if further := [key for key in unexpected if _is_of_further_layer(key, architecture)]:
        raise _misfit(
            f"the weights at {settings.path!r} have more layers than the {architecture.num_layers} of "
            f"config.json, such as {further[0]!r}"
        )


def _misfit(fact: str) -> ModelError:
    return ModelError(fact, where="model.path", expected=_EXPECTED, remedy=_REMEDY)


def _shape(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes))


def _is_of_further_layer(key: str, architecture: Architecture) -> bool:
    """Whether a tensor is of a layer past the last one; files may leave out the model's prefix."""
    prefix, _, _ = architecture.layer_name.partition("{layer}")
    names = [prefix, prefix.partition(".")[2]]
    found = next((key[len(name) :] for name in names if name and key.startswith(name)), "")
    number = found.partition(".")[0]
    return number.isdecimal() and int(number) >= architecture.num_layers


def _check_bare(model: Any) -> None:
    """Refuse a base that comes with an adapter on it, by its own code, say."""
    wrapped = next(
        (name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)), None
    )
    if wrapped is not None or getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"the base model comes with an adapter on it (at {wrapped or 'its top'!r})",
            where="model.path",
            expected="a base model without an adapter",
            remedy="merge the adapter into the base first (PEFT: merge_and_unload), and save that",
        )
