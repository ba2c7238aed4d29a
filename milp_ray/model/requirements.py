"""Requirements of a base model's files: packages, code of their repository, no adapter beside them.

They are checked by the configuration and the names of files, without loading anything, so that a
study is refused before workers start. An error for a missing package quotes the library that misses
it. Workers check what only a machine with a GPU can tell.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers.quantizers import AutoHfQuantizer
from transformers.utils import find_adapter_config_file

from milp_ray.config.models import ModelSettings
from milp_ray.errors import ModelError, own_words
from milp_ray.model.gguf_file import gguf_of
from milp_ray.model.quiet import no_load_report

_EVERY_NODE = "install it on every node"
# The names of SentencePiece tokenizers beside a model.
_SENTENCEPIECE = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "spm.model")
_READS_SENTENCEPIECE = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
# Implementations of attention that any architecture can do without.
_OF_ATTENTION = re.compile(r"\b(FlashAttention\w*|flash_attn|kernels)\b")
_LFS = b"version https://git-lfs.github.com/spec/"
# Of a SentencePiece model, which is a protocol buffer; tiktoken's files are base64 text.
_FIRST_FIELD = b"\x0a"


def check_requirements(settings: ModelSettings, config: Any) -> None:
    """Check that the base's folder holds no adapter, and that the packages it needs are installed.

    Args:
        settings: of the model.
        config: its transformers configuration.

    Raises:
        ModelError: it holds an adapter, its files cannot be loaded, or a package is missing.
    """
    if gguf_of(settings) is None:  # beside such a file nothing is read
        _refuse_adapter(settings)
    if fault := lfs_pointers(settings):
        raise fault
    _refuse_gguf(settings)
    _check_quantization(settings, config)
    _check_attention(config)


def _refuse_adapter(settings: ModelSettings) -> None:
    """Transformers would put an adapter beside the base on it, unasked."""
    found = find_adapter_config_file(
        settings.path, revision=settings.revision, local_files_only=Path(settings.path).is_dir()
    )
    if found is not None:
        raise ModelError(
            "the base's folder holds an adapter (adapter_config.json), which transformers would put on it",
            where="model.path",
            expected="a base model without an adapter",
            remedy="move adapter_config.json and its weights away, or merge the adapter into the base first "
            "(PEFT: merge_and_unload) and save that",
        )


def lfs_pointers(settings: ModelSettings) -> ModelError | None:
    """The error for a clone without Git LFS, which holds pointers in place of large files."""
    weights = _named(settings, ".safetensors") or _named(settings, ".bin")
    tokenizer = [file for name in ("tokenizer.json", "tokenizer.model") if (file := file_of(settings, name))]
    found = [file.name for file in [*weights, *tokenizer[:1]] if _is_pointer(file)]
    if not found:
        return None
    names = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return ModelError(
        f"Git LFS pointers lie in place of the files themselves: {names}",
        where="model.path",
        expected="weights and tokenizer in the model's folder",
        remedy="fetch them: git lfs pull in that folder, or hf download",
    )


def _refuse_gguf(settings: ModelSettings) -> None:
    """Of a folder's weights, those for llama.cpp are not read: a study names such a file itself."""
    others = [*_named(settings, ".safetensors"), *_named(settings, ".bin")]
    if (found := _named(settings, ".gguf")) and not others:
        raise ModelError(
            f"the base's folder has its weights as GGUF alone ({found[0].name})",
            where="model.path",
            expected="weights in safetensors, as transformers saves them, or a GGUF file by its own name",
            remedy=f"set model.path to the file, {found[0]}, or use the model that it was converted from",
        )


def _named(settings: ModelSettings, ending: str) -> list[Path]:
    """The files in the model's folder with this ending; none of a model in the hub's cache."""
    folder = Path(settings.path)
    return sorted(folder.glob(f"*{ending}")) if folder.is_dir() else []


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_LFS)) == _LFS


def _check_quantization(settings: ModelSettings, config: Any) -> None:
    """Check that transformers knows how the base is quantised, and has what it needs."""
    values = getattr(config, "quantization_config", None)
    if values is None:
        return
    values = values if isinstance(values, dict) else values.to_dict()
    method = _method_of(values)
    if not method:
        raise ModelError(
            "config.json says that the base model is quantised, but not how (no quant_method)",
            where="model.path",
            expected="a base that is not quantised, or a quant_method that transformers knows",
            remedy="use the base that it was made from; if the weights are not quantised, take "
            "quantization_config out of config.json",
        )
    try:
        with no_load_report():
            known = AutoHfQuantizer.supports_quant_method(values)
        if known:
            quantizer = AutoHfQuantizer.from_config(values, pre_quantized=True)
            quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:  # each method raises its own kinds
        if _is_of_gpus(error) and settings.device != "cpu" and not torch.cuda.is_available():
            return  # workers may have what this machine has not
        missing = isinstance(error, ImportError) and not _is_of_gpus(error)
        raise ModelError(
            f"the base model is quantised ({method}): {own_words(error)}",
            where="model.path",
            expected="what loads such a base, on every node",
            remedy=f"{f'{_EVERY_NODE}, or ' if missing else ''}use a base that is not quantised",
        ) from error
    if not known:
        raise ModelError(
            f"the base model is quantised in a way that transformers does not know ({method})",
            where="model.path",
            expected="a way that transformers loads, or a base that is not quantised",
            remedy="use the base that it was made from",
        )


def _check_attention(config: Any) -> None:
    """An attention from the hub, ``owner/name``, needs a package of its own.

    transformers up to 5.22 misses it once in a process, then loads a base that cannot be used.
    """
    name = getattr(config, "_attn_implementation", None)
    if isinstance(name, str) and "/" in name and not _is_installed("kernels"):
        raise needs_package(ImportError(f"`kernels`, for the attention {name}"), "the base model")


def _method_of(values: dict[str, Any]) -> str:
    method = values.get("quant_method")
    bits = next((name for name in ("load_in_4bit", "load_in_8bit") if values.get(name)), "")
    return str(getattr(method, "value", method) or ("bitsandbytes" if bits else ""))


def _is_of_gpus(error: Exception) -> bool:
    return re.search(r"\b(GPUs?|CUDA|XPU)\b", str(error)) is not None and "pip install" not in str(error)


def needs_package(error: Exception, what: str) -> ModelError:
    """The error for a missing package, in the words of the library that misses it.

    Args:
        error: the ImportError, or one that it led to.
        what: needs the package.
    """
    words = own_words(error)
    without = "use a base that does not need it"
    if _OF_ATTENTION.search(words):
        without = "take _attn_implementation out of the model's config.json, which asks for it"
    return ModelError(
        f"{what} needs a package that is not there: {words}",
        where="model.path",
        expected="the packages that the model's files ask for, on every node",
        remedy=f"{_EVERY_NODE}, or {without}",
    )


def needs_code(what: str) -> ModelError:
    """The error for a part of the base that is code, which the study does not trust.

    Args:
        what: the part.
    """
    return ModelError(
        f"{what} is code of the model's own repository, which only model.trust_remote_code lets run",
        where="model.path",
        expected="a base that transformers knows by itself",
        remedy="set model.trust_remote_code for code that you have read (docs/security.md), or use a "
        "base that brings none",
    )


def load_fault(error: Exception, what: str) -> ModelError | None:
    """The error for a missing package, or for code that may not run; None for a fault of the files.

    Args:
        error: of transformers.
        what: the part of the base that was being loaded.
    """
    if "trust_remote_code" in str(error):
        return needs_code(what)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ImportError):
            return needs_package(error, what)
        cause = cause.__cause__ or cause.__context__
    return None


def missing_sentencepiece(settings: ModelSettings) -> ModelError | None:
    """The error for a SentencePiece tokenizer where that package is missing.

    Transformers takes the file for one of tiktoken then, and misses tiktoken.
    """
    packages = [name for name, module in _READS_SENTENCEPIECE.items() if not _is_installed(module)]
    if not packages:
        return None
    for name in _SENTENCEPIECE:
        file = file_of(settings, name)
        if file is None:
            continue
        with file.open("rb") as opened:
            if opened.read(1) == _FIRST_FIELD:
                missing = " and ".join(packages)
                return ModelError(
                    f"{name} is a tokenizer of SentencePiece, which needs {missing}",
                    where="model.path",
                    expected=f"{missing} on every node, or a tokenizer.json beside the model",
                    remedy=f"pip install {' '.join(packages)} on every node",
                )
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of its parent package
        return False


def file_of(settings: ModelSettings, name: str) -> Path | None:
    """A file of the model, in its folder or the hub's cache; of a GGUF file there is none."""
    folder = Path(settings.path)
    if folder.exists():
        return folder / name if (folder / name).is_file() else None
    cached = try_to_load_from_cache(settings.path, name, revision=settings.revision)
    return Path(cached) if isinstance(cached, str) else None
