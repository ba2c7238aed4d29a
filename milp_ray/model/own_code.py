"""Python code that a base model brings: run only if the study trusts it, and only if pinned.

Such code has three sources. A hub model's own is pinned by ``model.revision``. A folder's is part
of the base's fingerprint, so that a resumed run notices other code before any of it runs. Code of
another repository, which ``auto_map`` names as ``owner/name--module.Class``, comes from that
repository's main branch, whatever ``revision`` says; ``model.code_revision`` pins it, or it is
refused. Does *not* cover what such code loads in its turn.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from milp_ray.config.models import COMMIT_PATTERN, ModelSettings
from milp_ray.errors import ModelError

CODE = "code"  # the key of all code files' digest in a base's fingerprint


def check_pinned(settings: ModelSettings) -> None:
    """Check that all code that loading the model would run is pinned, without running any of it.

    Raises:
        ModelError: it is not.
        Exception: of the hub's client, or of a file that is no JSON.
    """
    if not settings.trust_remote_code:
        return
    local = Path(settings.path).exists()
    if not local and not re.fullmatch(COMMIT_PATTERN, settings.revision or ""):
        raise ModelError(
            "trust_remote_code runs the repository's code, and the revision is no commit",
            where="model.revision",
            expected="40 hex digits",
            remedy="pin the commit whose code you have read",
        )
    named = {_repository_of(name) for name in _named_classes(settings, local)}
    own = {"", settings.path}
    foreign = sorted(named - own)
    if settings.code_revision is None:
        if foreign:
            raise _unpinned(foreign, "set model.code_revision to the commit whose code you have read")
        return
    if len(foreign) != 1:
        fact = "names no code of another repository" if not foreign else f"names code of {_shown(foreign)}"
        raise ModelError(
            f"code_revision is set, and the model {fact}",
            where="model.code_revision",
            expected="the commit of the one other repository whose code the model names",
            remedy="leave it out" if not foreign else _COPY,
        )
    if named & own and not local:
        # transformers would look for the model's own code at that commit, too.
        raise _unpinned(foreign, _COPY)


def code_digest(folder: Path) -> str:
    """SHA-256 (hex) over names and contents of a model folder's Python files, except hidden ones.

    Subfolders count: ``custom_generate/generate.py`` runs when a model is loaded.

    Raises:
        OSError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if not any(part.startswith(".") for part in name.parts) and path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{name.as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


_COPY = "copy the code into a folder of the model's own, correct auto_map there, and name the folder"


def _unpinned(foreign: list[str], remedy: str) -> ModelError:
    return ModelError(
        f"the model names code of {_shown(foreign)}, which its own revision does not pin",
        where="model.trust_remote_code",
        expected="code that cannot change between check, search and resume",
        remedy=remedy if len(foreign) == 1 else _COPY,
    )


def _shown(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:4]) + (", …" if len(names) > 4 else "")


def _repository_of(name: str) -> str:
    """The repository of a class that ``auto_map`` names; empty for the model's own."""
    return name.rpartition("--")[0]


def _named_classes(settings: ModelSettings, local: bool) -> Iterator[str]:
    """The classes that the model's configuration and its tokenizer's name in ``auto_map``."""
    for file in ("config.json", "tokenizer_config.json"):
        yield from _in_auto_maps(_read(settings, file, local))


def _read(settings: ModelSettings, file: str, local: bool) -> Any:
    """A JSON file of the model; None where it has none.

    Other errors are raised as they are: a file that cannot be read now may be there when the model
    is loaded.
    """
    if local:
        path = Path(settings.path) / file  # of a GGUF file there is none, and what is beside it is not read
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        path = Path(hf_hub_download(settings.path, file, revision=settings.revision))
    except LocalEntryNotFoundError:
        if not constants.HF_HUB_OFFLINE:
            raise
        return None
    except EntryNotFoundError:
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def _in_auto_maps(values: Any, inside: bool = False) -> Iterator[str]:
    if isinstance(values, str):
        if inside:
            yield values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _in_auto_maps(value, inside or key == "auto_map")
    elif isinstance(values, list):
        for value in values:
            yield from _in_auto_maps(value, inside)
