"""Configuration and tokenizer of a study's base model: in a folder, a GGUF file or from the hub.

Drivers read them, and load no model: PEFT and the models' own modules are not imported here. Remote
code runs only where the study pins it. Weights are :mod:`milp_ray.model.weights`'.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub.constants import HF_HUB_OFFLINE
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer

from milp_ray.config.models import HUB_NAME, ModelSettings, Study
from milp_ray.errors import ModelError, own_words
from milp_ray.memory.architectures import Architecture, architecture_names, architecture_of
from milp_ray.model.gguf_file import DIGITS_APART, SUFFIX, check_readable, gguf_of, header_of
from milp_ray.model.gguf_weights import reading
from milp_ray.model.load_errors import check_transient
from milp_ray.model.own_code import check_pinned
from milp_ray.model.quiet import no_load_report
from milp_ray.model.requirements import lfs_pointers, load_fault, missing_sentencepiece

_REMEDY = "correct model.path; relative paths start from the working directory"
_OFFLINE = (
    "unset HF_HUB_OFFLINE, with which no hub is asked, or fetch the model first (hf download), or correct "
    "model.path"
)
# The vocabularies beside a model, whatever its tokenizer.
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "vocabulary*", "*.tiktoken", "tekken.json")


def load_architecture(settings: ModelSettings) -> Architecture:
    """The structure of a study's base model, from its config.json alone.

    Raises:
        ModelError: no such folder or hub model, a damaged configuration, or an architecture that
            is not supported.
    """
    return architecture_of(load_config(settings))


def check_fits(architecture: Architecture, study: Study) -> None:
    """Check that the study's text lengths fit the model's context.

    Raises:
        ModelError: ``prompts.max_length`` or ``trial.max_new_tokens`` is too large for it.
    """
    context = architecture.context
    if study.prompts.max_length > context:
        raise ModelError(
            f"texts of up to {study.prompts.max_length} tokens, but the model takes {context}",
            where="prompts.max_length",
            expected=f"at most {context}",
            remedy=f"set prompts.max_length to {context} or less",
        )
    if study.trial.max_new_tokens >= context:
        raise ModelError(
            f"responses of {study.trial.max_new_tokens} tokens leave no room for a prompt of the {context}",
            where="trial.max_new_tokens",
            expected=f"less than {context}",
            remedy="set trial.max_new_tokens to the length of a usual response",
        )


def load_config(settings: ModelSettings) -> Any:
    """The transformers configuration of a study's base model.

    Raises:
        ModelError: no such folder or hub model, a damaged configuration, or unpinned code.
        StorageError: its storage does not answer.
    """
    path = Path(settings.path)
    if path.is_dir():
        _check_model_type(path)
    elif gguf_of(settings) is None and (path.is_file() or not _may_be_hub_name(settings.path)):
        raise ModelError(
            f"the model folder {settings.path!r} {'is a file' if path.is_file() else 'does not exist'}",
            where="model.path",
            expected="a folder with config.json, weights and tokenizer, a GGUF file, or a hub name",
            remedy=_REMEDY,
        )
    try:
        check_pinned(settings)
        config = _read_config(settings)
    except ModelError:
        raise
    except Exception as error:  # OSError, ValueError, and the hub's own kinds, which are not public
        check_transient(error)
        raise (
            _without_config(path)
            or load_fault(error, "the configuration")
            or ModelError(
                f"no usable configuration at {settings.path!r} ({type(error).__name__}: {own_words(error)})",
                where="model.path",
                expected="a folder with config.json, weights and tokenizer, or a hub name within reach",
                remedy=_REMEDY if path.is_dir() or not HF_HUB_OFFLINE else _OFFLINE,
            )
        ) from error
    if config.model_type == "roberta":
        config.is_decoder = True  # an encoder as released; as a decoder its attention is causal
    return config


def load_tokenizer(settings: ModelSettings) -> Any:
    """The tokenizer of a study's base model.

    Raises:
        ModelError: there is none that can be used, it needs a package that is missing or code of
            its repository, or it has no end-of-text token.
        StorageError: its storage does not answer.
    """
    try:
        with source(settings) as arguments:
            tokenizer = AutoTokenizer.from_pretrained(**arguments)
    except Exception as error:  # as many kinds as there are tokenizer backends
        check_transient(error)
        raise (
            lfs_pointers(settings)
            or missing_sentencepiece(settings)
            or load_fault(error, "the tokenizer")
            or _without_tokenizer(Path(settings.path))
            or ModelError(
                f"no usable tokenizer at {settings.path!r} ({type(error).__name__}: {own_words(error)})",
                where="model.path",
                expected="tokenizer.json (or the files of the model's own tokenizer) beside config.json",
                remedy="copy the tokenizer files of the model into its folder",
            )
        ) from error
    if (file := gguf_of(settings)) is not None:
        tokenizer.name_or_path = settings.path
        _set_digits_apart(tokenizer, file)
        _take_out_others(tokenizer, header_of(file).lengths.get("tokenizer.ggml.tokens", len(tokenizer)))
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no end-of-text token",
            where="model.path",
            remedy="set eos_token in the model's tokenizer_config.json",
        )
    return tokenizer


def check_vocabulary(tokenizer: Any, architecture: Architecture) -> None:
    """Check that the model has an embedding for every token.

    Raises:
        ModelError: the tokenizer has more.
    """
    if len(tokenizer) > architecture.vocab_size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {architecture.vocab_size}",
            where="model.path",
            expected="a token's number below the embedding's size, for every token",
            remedy="use the tokenizer that the model was trained with",
        )


@contextlib.contextmanager
def source(settings: ModelSettings) -> Iterator[dict[str, Any]]:
    """Inside the block, the arguments of every ``from_pretrained`` call.

    They allow remote code only where the study pins it, and the network only for hub names. Of a
    GGUF file nothing beside it is read.
    """
    if (file := gguf_of(settings)) is not None:
        # Transformers looks for a mere name in the working folder first, and for an adapter and the
        # tokenizer's settings in the folder.
        with tempfile.TemporaryDirectory() as empty, reading():
            yield {"pretrained_model_name_or_path": empty, "gguf_file": str(file), "local_files_only": True}
        return
    local = Path(settings.path).is_dir()
    code = settings.code_revision
    yield {
        "pretrained_model_name_or_path": settings.path,
        "trust_remote_code": settings.trust_remote_code,
        "revision": settings.revision,
        "local_files_only": local and code is None,
        **({"code_revision": code} if code else {}),
    }


def _read_config(settings: ModelSettings) -> Any:
    if (file := gguf_of(settings)) is not None:
        check_readable(file)
        status = file.stat()
        return copy.deepcopy(_config_of_gguf(settings, status.st_size, status.st_mtime_ns))
    with no_load_report(), source(settings) as arguments:
        return AutoConfig.from_pretrained(**arguments)


@functools.lru_cache(maxsize=4)
def _config_of_gguf(settings: ModelSettings, _size: int, _changed: int) -> Any:
    """Once a process: with its whole vocabulary the file's header takes a second."""
    with no_load_report(), source(settings) as arguments:
        return AutoConfig.from_pretrained(**arguments)


def _set_digits_apart(tokenizer: Any, file: Path) -> None:
    """Have the tokenizer of a GGUF file split text as the model's own does.

    Transformers takes every way that it does not know for GPT-2's. Without this, two line breaks
    before a number were other tokens than those that the model learned.
    """
    if header_of(file).values.get("tokenizer.ggml.pre") in DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer]
        )


def _take_out_others(tokenizer: Any, count: int) -> None:
    """Take tokens out of a GGUF file's tokenizer that the file does not have.

    Transformers makes GPT-2's of every byte-level one, and adds GPT-2's ``<|endoftext|>`` where it
    is missing (Llama 3). The model has no embedding for it.
    """
    if len(tokenizer) <= count:
        return
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    others = {token["content"] for token in content["added_tokens"] if token["id"] >= count}
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in others]
    if content["model"].get("unk_token") in others:
        content["model"]["unk_token"] = None  # bytes are all known
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))


def _may_be_hub_name(path: str) -> bool:
    """Whether a path can name a hub model; beside a folder 'models', 'models/tiny' is a mistake."""
    parent = Path(path).parent
    file = path.lower().endswith(SUFFIX)
    return HUB_NAME.fullmatch(path) is not None and not file and not (parent.name and parent.is_dir())


def _without_config(folder: Path) -> ModelError | None:
    """The error for a folder without config.json, where transformers misses a model type in it."""
    # os.path's functions never raise.
    if not os.path.isdir(folder) or os.path.exists(folder / "config.json"):  # noqa: PTH110, PTH112
        return None
    adapter = os.path.exists(folder / "adapter_config.json")  # noqa: PTH110
    return ModelError(
        f"the model folder {str(folder)!r} has no config.json{', but an adapter' if adapter else ''}",
        where="model.path",
        expected="a folder with config.json, weights and tokenizer, or a hub name",
        remedy="name the base that the adapter was trained on" if adapter else _REMEDY,
    )


def _without_tokenizer(folder: Path) -> ModelError | None:
    """The error for a folder without a tokenizer: transformers asks for packages to convert one."""
    if not os.path.isdir(folder):  # noqa: PTH112
        return None
    if any(found for pattern in _TOKENIZERS for found in folder.glob(pattern)):
        return None
    return ModelError(
        f"the model folder {str(folder)!r} has no tokenizer",
        where="model.path",
        expected="tokenizer.json (or the files of the model's own tokenizer) beside config.json",
        remedy="copy the tokenizer files of the model into its folder",
    )


def _check_model_type(folder: Path) -> None:
    """Refuse a model type that is not supported, whether or not transformers knows it."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = values["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # loading tells what is wrong
    if model_type not in architecture_names():
        architecture_of(SimpleNamespace(model_type=model_type))
