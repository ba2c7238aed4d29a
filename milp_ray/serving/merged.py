"""`milp-ray export --for merged`: whole models with a user's memory in their weights.

For tools that read no adapters. Each is as large as the base, so this is for a few users.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from milp_ray.errors import Problem, StudyError
from milp_ray.ids import child
from milp_ray.memory.adapter_files import WEIGHTS
from milp_ray.memory.adapter_notes import check_content
from milp_ray.model.base import BaseModel, load_base
from milp_ray.model.fingerprint import base_fingerprint, check_base
from milp_ray.model.row_adapters import LoraWeights, load_lora
from milp_ray.serving.export import VERSION, Say, Summary
from milp_ray.serving.memories import users_with_memory
from milp_ray.storage import is_url, local_copy, reading, write_folder
from milp_ray.study.run_folder import RunFolder


def export_merged(
    run: Path | str, place: Path | str, users: Sequence[str], *, notify: Say = lambda _: None
) -> Summary:
    """Write a model folder a user, with tokenizer, as transformers loads it.

    Those that are there are kept; a memory that was trained again gets a new folder.

    Args:
        run: the run folder, or its URL.
        place: a folder on this machine.
        users: aliases, or raw ids; none: all who have a memory.
        notify: is told what goes on.

    Raises:
        StudyError: the place is a URL.
        RunFolderError: there is no run, or no memory.
        ModelError: the base model is not usable, or is another one than the memories' own.
        StorageError: a memory is damaged, or ``place`` cannot be written.
    """
    if is_url(place):
        remedy = "write whole models to a folder, and copy it"
        raise StudyError("export", [Problem("destination", "is a URL", "a folder", remedy)])
    folder, root = RunFolder.open(run), Path(place).expanduser().resolve()
    aliases = users_with_memory(folder, users)
    check_base(folder.base, base_fingerprint(folder.study.model))
    base, written, largest = load_base(folder.study.model), 0, 0
    for alias in aliases:
        with local_copy(folder.layout.memory(alias)) as source:
            with reading(source):
                check_content(source, user=alias)
                digest = hashlib.sha256((source / WEIGHTS).read_bytes()).hexdigest()
            lora = load_lora(base, source)
        largest = max(largest, *(len(a) for a, _ in lora.modules.values()))
        target = child(root, f"{alias}-{digest[:VERSION]}")
        if not target.exists():
            with merged(base, lora):
                write_folder(target, lambda draft: _save(base, draft))
            written += 1
            notify(f"{alias}: {target.name}")
    return Summary(str(root), len(aliases), written, largest, "")


@contextlib.contextmanager
def merged(base: BaseModel, lora: LoraWeights) -> Iterator[None]:
    """Inside the block the adapter is in the base's own weights, which are put back bit for bit."""
    before: dict[str, torch.Tensor] = {}
    try:
        for name, (a, b) in lora.modules.items():
            weight = base.model.get_submodule(name).weight
            assert isinstance(weight, torch.Tensor)
            before[name] = weight.detach().clone()
            delta = b @ a
            weight.data += (delta.T if base.architecture.transposed else delta).to(weight.dtype)
        yield
    finally:
        for name, kept in before.items():
            weight = base.model.get_submodule(name).weight
            assert isinstance(weight, torch.Tensor)
            weight.data.copy_(kept)


def _save(base: BaseModel, draft: Path) -> None:
    model: Any = base.model
    model.save_pretrained(draft)
    base.tokenizer.save_pretrained(draft)
