"""A base in one GGUF file, llama.cpp's format: its header, and what transformers cannot read of it.

The header has the configuration, the tokenizer and a table of the tensors. What is refused is
refused by the header alone, before a weight is read: transformers would fail late, or read such a
file without a word and make another model of it. Does *not* cover the weights
(:mod:`milp_ray.model.gguf_weights`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from milp_ray.config.models import ModelSettings
from milp_ray.errors import ModelError, own_words
from milp_ray.memory.architectures import architecture_names

SUFFIX = ".gguf"
_OTHER = "name another file, or the folder of the model that it was made from"
_LFS = b"version https://git-lfs"
# Of GPT-2, transformers leaves out context and feed-forward width; Mistral is a llama to llama.cpp.
_READ_OTHERWISE = {"gpt2", "mistral"}
# How llama.cpp calls tokenizers that split text as GPT-2's, which is what transformers does with
# any name that it does not know.
_LIKE_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"}
#: Those that set every digit apart first, then split as GPT-2's: transformers knows none of them.
DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}


@dataclass(frozen=True)
class Header:
    """The header of a GGUF file.

    Attributes:
        values: the metadata's single values, by their keys.
        lengths: of the metadata's lists, by their keys.
        tensors: name -> sizes, outermost first.
        types: name of a way to store numbers (``Q4_1``) -> a tensor stored so.
    """

    values: Mapping[str, Any]
    lengths: Mapping[str, int]
    tensors: Mapping[str, tuple[int, ...]]
    types: Mapping[str, str]

    @property
    def architecture(self) -> str:
        """The model's, as llama.cpp calls it."""
        return str(self.values.get("general.architecture", ""))


def gguf_of(settings: ModelSettings) -> Path | None:
    """The GGUF file that ``model.path`` names, by its ending; None where it names none."""
    path = Path(settings.path).absolute()
    return path if path.suffix.lower() == SUFFIX and path.is_file() else None


def header_of(file: Path) -> Header:
    """The header of a GGUF file. A file is read once a process, as long as it stays the same.

    Raises:
        ModelError: the package gguf is missing, or the file is no GGUF file, cut or damaged.
        OSError: it cannot be read.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{file.name} needs a package that is not there: gguf, which reads such files",
            where="model.path",
            expected="the package gguf on every node",
            remedy='pip install "milp_ray[gguf]" on every node, or name the folder of the model that it was '
            "made from",
        )
    status = file.stat()
    return _read(file, status.st_size, status.st_mtime_ns)


def end_ids(settings: ModelSettings) -> frozenset[int]:
    """Tokens that end a turn, beside the end of text; transformers does not look for them."""
    if (file := gguf_of(settings)) is None:
        return frozenset()
    values = header_of(file).values
    named = (values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom"))
    return frozenset(int(token) for token in named if token is not None)


def check_readable(file: Path) -> None:
    """Check that transformers reads the model in a GGUF file as it is.

    Raises:
        ModelError: it reads no such architecture, numbers that are stored so, text that is split
            so, rotations that are scaled so, or a file of several; or see :func:`header_of`.
    """
    header = header_of(file)
    for fault in (_other_content, _other_architecture, _other_numbers, _other_rotations, _other_split):
        if found := fault(header):
            fact, expected = found
            raise ModelError(f"{file.name} {fact}", where="model.path", expected=expected, remedy=_OTHER)


@contextlib.contextmanager
def quick_reader() -> Iterator[None]:
    """Inside the block, gguf's reader takes a list of the header as a whole.

    Its own goes from one entry to the next, and transformers reads each file three times: of a
    vocabulary of 49,152 tokens each time took 5 s.
    """
    import gguf

    own = gguf.GGUFReader
    gguf.GGUFReader = _quick(own)
    try:
        yield
    finally:
        gguf.GGUFReader = own


@functools.lru_cache(maxsize=4)
def _read(file: Path, size: int, _changed: int) -> Header:
    import gguf

    with file.open("rb") as opened:
        start = opened.read(len(_LFS))
    if not start.startswith(b"GGUF"):
        pointer = start == _LFS
        raise ModelError(
            f"{file.name} is {'a pointer of Git LFS in place of the file' if pointer else 'no GGUF file'}",
            where="model.path",
            expected="a file that begins with GGUF",
            remedy="fetch it: git lfs pull in its folder, or hf download" if pointer else _OTHER,
        )
    try:
        with quick_reader():
            reader = gguf.GGUFReader(file)
    except OSError:
        raise
    except Exception as error:  # as many kinds as there are ways to be damaged
        raise ModelError(
            f"{file.name} is cut or damaged, or newer than the package gguf ({size:,} bytes; "
            f"{own_words(error)})",
            where="model.path",
            expected="a GGUF file as it was released",
            remedy="fetch it again, or raise the package: pip install --upgrade gguf",
        ) from error
    values = {key: field.contents() for key, field in reader.fields.items() if len(field.types) == 1}
    tensors = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in reader.tensors}
    lengths = {key: len(field.data) for key, field in reader.fields.items() if key not in values}
    return Header(
        values, lengths, tensors, {tensor.tensor_type.name: tensor.name for tensor in reader.tensors}
    )


def _other_content(header: Header) -> tuple[str, str] | None:
    kind = header.values.get("general.type", "model")
    if kind != "model":
        return f"holds no model ({kind})", "a model"
    if (parts := int(header.values.get("split.count", 0))) > 1:
        return f"is one of {parts} parts", "one file (llama.cpp: llama-gguf-split --merge)"
    return None


def _other_architecture(header: Header) -> tuple[str, str] | None:
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    both = sorted(set(GGUF_CONFIG_MAPPING) & set(architecture_names()) - _READ_OTHERWISE)
    if header.architecture in both:
        return None
    return f"holds a model of architecture {header.architecture!r}", f"one of {', '.join(both)}"


def _other_numbers(header: Header) -> tuple[str, str] | None:
    import gguf

    for name, tensor in header.types.items():
        kind = gguf.GGMLQuantizationType[name]
        _, size = gguf.GGML_QUANT_SIZES[kind]
        try:
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            return (
                f"is quantised in a way that cannot be undone ({name}, such as {tensor!r})",
                "what the package gguf dequantises: Q4_0 to Q8_0, Q2_K to Q6_K, IQ, TQ, F16, BF16, F32",
            )
    return None


def _other_rotations(header: Header) -> tuple[str, str] | None:
    kind = header.values.get(f"{header.architecture}.rope.scaling.type", "none")
    if kind == "none":
        return None
    return f"scales positions ({kind}), which transformers leaves out", "a model without rope.scaling.type"


def _other_split(header: Header) -> tuple[str, str] | None:
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    if header.values.get("tokenizer.ggml.model") != "gpt2":  # SentencePiece's split by themselves
        return None
    known = {*getattr(gguf_tokenizer_mapping, "GGUF_PRE_TOKENIZER_SPLITS", ()), *_LIKE_GPT2, *DIGITS_APART}
    split = header.values.get("tokenizer.ggml.pre")
    if split in known:
        return None
    said = f"splits text as {split!r} does" if split else "does not say how its tokenizer splits text"
    return f"{said}, which transformers takes for GPT-2's way", f"one of {', '.join(sorted(known))}"


def _quick(own: Any) -> Any:
    import gguf

    array, string = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING

    class Quick(own):  # type: ignore[misc]
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type != array or self.byte_order != "I":
                return super()._get_field_parts(orig_offs, raw_type)
            kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
            entries, end = self._entries(orig_offs + 12, gguf.GGUFValueType(kind[0]), int(count[0]))
            indices = list(range(2, 2 + len(entries)))
            types = [array, gguf.GGUFValueType(kind[0])] if entries else [array]
            return end - orig_offs, [kind, count, *entries], indices, types

        def _entries(self, start: int, kind: Any, count: int) -> tuple[list[Any], int]:
            """The entries of a list and where it ends, without a memory map's cost for each."""
            if kind != string:
                values = self._get(start, self.gguf_scalar_to_np[kind], count).view(np.ndarray)
                if len(values) != count:
                    raise ValueError("a list ends behind the file")
                return [values[n : n + 1] for n in range(count)], start + values.nbytes
            data = self.data.view(np.ndarray)
            raw, entries = memoryview(data), []
            for _ in range(count):
                begin = start + 8
                start = begin + int.from_bytes(raw[begin - 8 : begin], "little")
                if start > len(data):
                    raise ValueError("a list ends behind the file")
                entries.append(data[begin:start])
            return entries, start

    return Quick
