"""A fingerprint of the base model at ``model.path``, by which a resume notices another one.

A hub model's is its commit. A folder's covers configuration and tokenizer as a whole, and of the
weight files names, sizes and a sample of the bytes: reading all of a large model would delay every
start. Training changes nearly all bytes, so the sample shows it; a few numbers changed by hand may
go unnoticed. Of a GGUF file its beginning, where configuration and tokenizer are, counts as a
whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from milp_ray.config.models import ModelSettings
from milp_ray.errors import ModelError
from milp_ray.model.gguf_file import gguf_of
from milp_ray.model.own_code import CODE, code_digest

_READ = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "*.model",
    "*.tiktoken",
    "*.py",
)
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
COMMIT = "commit"
# A sample of at most 1 MiB a file, evenly spread; smaller files are read whole.
_BLOCKS, _BLOCK_BYTES = 256, 4096
# The headers of GGUF files with the largest vocabularies are 12 MiB; 0.03 s.
_GGUF_HEADER_BYTES = 16 << 20


def base_fingerprint(settings: ModelSettings) -> dict[str, str]:
    """The fingerprint of a study's base model.

    Returns:
        Name of a file -> its SHA-256, and ``code`` -> that of all Python files where the study
        trusts them. Of a hub model, ``commit`` alone; empty if the local cache does not know it.

    Raises:
        ModelError: a file of the model folder cannot be read.
    """
    folder = Path(settings.path)
    if (file := gguf_of(settings)) is not None:
        with _readable(file):
            return {file.name: _sampled(file, whole=_GGUF_HEADER_BYTES)}
    if not folder.is_dir():
        commit = _cached_commit(settings)
        return {COMMIT: commit} if commit else {}
    with _readable(folder):
        return {
            path.name: _sampled(path) if _is(path, _WEIGHTS) else _digest(path)
            for path in sorted(folder.iterdir())
            if _is(path, _READ + _WEIGHTS) and path.is_file()
        } | code_fingerprint(settings)


def code_fingerprint(settings: ModelSettings) -> dict[str, str]:
    """The entry ``code`` of :func:`base_fingerprint`; empty where no code of the model may run.

    Raises:
        ModelError: a code file cannot be read.
    """
    folder = Path(settings.path)
    if not settings.trust_remote_code or not folder.is_dir():
        return {}
    with _readable(folder):
        return {CODE: code_digest(folder)}


def check_base(recorded: Mapping[str, str], present: Mapping[str, str]) -> None:
    """Refuse another base than a run was begun with. An empty fingerprint agrees with any other.

    Args:
        recorded: the fingerprint that the run was begun with.
        present: the base's fingerprint now.

    Raises:
        ModelError: they differ; the files are named.
    """
    if CODE not in recorded:  # by an earlier version, which had no such entry
        present = {name: digest for name, digest in present.items() if name != CODE}
    names = recorded.keys() | present.keys()
    differing = sorted(name for name in names if recorded.get(name) != present.get(name))
    if not recorded or not present or not differing:
        return
    shown = ", ".join(differing[:4]) + (", …" if len(differing) > 4 else "")
    raise ModelError(
        f"the base model has changed since the run began ({shown})",
        where="model.path",
        expected="the same model: finished trials were measured on it",
        remedy="put it back, or start a new run under another study name",
    )


def check_code(recorded: Mapping[str, str], settings: ModelSettings) -> None:
    """Refuse other code in a model's folder than a run was begun with, before any of it runs.

    Raises:
        ModelError: as :func:`check_base`.
    """
    if CODE in recorded:
        check_base({CODE: recorded[CODE]}, code_fingerprint(settings))


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"a file of the model cannot be read: {error.strerror or type(error).__name__}",
            where=f"model.path {error.filename or folder}",
            expected="a model folder of which all files can be read",
            remedy="change its permissions, or fetch the model again",
        ) from error


def _cached_commit(settings: ModelSettings) -> str:
    """The commit of a hub model's revision in the local cache; no network is used."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(settings.path, "config.json", revision=settings.revision)
    commit = Path(found).parent.name if isinstance(found, str) else ""
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else ""


def _is(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path.name, pattern) for pattern in patterns)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sampled(path: Path, whole: int = 0) -> str:
    """``whole``: so many bytes of the beginning count whatever the sample is."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size} ".encode())
    with path.open("rb") as file:
        digest.update(file.read(whole))
        for start in range(0, size, max(size // _BLOCKS, _BLOCK_BYTES)):
            file.seek(start)
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()
