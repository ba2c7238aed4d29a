"""Memories for others: copies of adapters that name no path of this machine, of one rank if asked.

A memory has a rank per layer. PEFT reads that from ``rank_pattern`` and ``alpha_pattern``; many
other readers know one rank or one alpha for a whole file (docs/serving.md). Zeros fill lesser ranks
up to one: B A is a sum over ranks, and a row of zeros in A beside a column of zeros in B adds
nothing, so the function is the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from milp_ray.errors import SpaceError
from milp_ray.memory.adapter_files import PREFIX, Config, RawTensor, Tensors, file_contents, read_files
from milp_ray.memory.adapter_notes import NOTE, note_of_copy
from milp_ray.storage import write_synced

#: A module's or matrix's name, taken apart at its layer.
LAYER = re.compile(r"^(?P<before>.*?\.)(?P<layer>\d+)(?P<part>\..*)$")
# Last names that GPT-2 and RoBERTa give to modules of their attention as well.
_OF_ATTENTION_TOO = frozenset({"c_proj", "dense"})


def copy_adapter(source: Path, folder: Path, *, one_rank: bool = False) -> None:
    """Write a saved adapter to ``folder``, which is there, for other machines.

    Its ``base_model_name_or_path`` is the hub name, or the last part of a path. Of the files beside
    the adapter its note comes along, renewed.

    Args:
        source: a folder that :func:`milp_ray.memory.adapters.save_adapter` wrote, in any version.
        folder: where the two files go.
        one_rank: fill up lesser ranks with zeros, and leave the patterns out.

    Raises:
        StorageError: the adapter is damaged, or the folder cannot be written.
        RunFolderError: the adapter is not the one that its note was written for.
        SpaceError: the layers' alpha / rank differ, so that no one rank gives the same function.
    """
    config, tensors = read_files(source)
    config["base_model_name_or_path"] = portable_name(config.get("base_model_name_or_path") or "")
    if one_rank:
        config, tensors = with_one_rank(config, tensors)
    for name, content in file_contents(config, tensors).items():
        write_synced(folder / name, content)
    if (note := note_of_copy(folder, source)) is not None:
        write_synced(folder / NOTE, note)


def with_one_rank(
    config: Config, tensors: Mapping[str, RawTensor], rank: int | None = None
) -> tuple[Config, Tensors]:
    """The same function with one rank and one alpha: zeros fill A's rows up, and B's columns.

    Args:
        config: of the adapter; not changed.
        tensors: under PEFT's names.
        rank: of the result; None: the largest one of the adapter.

    Raises:
        SpaceError: ``rank`` is below a layer's, or the layers' alpha / rank differ.
    """
    largest = max(_rank_of(name, tensor) for name, tensor in tensors.items())
    wanted = largest if rank is None else rank
    if wanted < largest:
        raise SpaceError(
            f"rank {wanted} is below a layer's, {largest}",
            expected=f"a rank of at least {largest}",
            remedy="bound the ranks of the next search by memory.max_rank",
        )
    alpha = scaling_of(config) * wanted
    changes = {"r": wanted, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha}
    empty: dict[str, object] = {"rank_pattern": {}, "alpha_pattern": {}}
    return {**config, **changes, **empty}, {name: _filled(name, t, wanted) for name, t in tensors.items()}


def in_every_layer(
    config: Config, tensors: Mapping[str, RawTensor], num_layers: int
) -> tuple[Config, Tensors]:
    """The same function with a LoRA on every layer: of zeros where the memory has none.

    Args:
        config: with one rank, as :func:`with_one_rank` gives it; not changed.
        tensors: under PEFT's names; all layers have modules of the same shapes.
        num_layers: of the base model.
    """
    filled: Tensors = {}
    for layer in range(num_layers):
        for name, tensor in tensors.items():
            found = LAYER.match(name)
            assert found is not None, name
            there = f"{found['before']}{layer}{found['part']}"
            filled[there] = tensors[there] if there in tensors else tensor.zeros(*tensor.shape)
    modules = {module_of(name) for name in filled}
    short = {name.rpartition(".")[2] for name in modules}
    # A short name that modules of the attention have, too, would ask for LoRAs on these.
    targets = sorted(modules if short & _OF_ATTENTION_TOO else short)
    return {**config, "target_modules": targets}, filled


def module_of(name: str) -> str:
    """The module that a matrix of an adapter is of, by its name from the model's root."""
    return name.removeprefix(PREFIX).rsplit(".lora_", 1)[0]


def portable_name(base: str) -> str:
    """What a base model is called elsewhere: a hub name as it is, the last part of a path."""
    is_path = Path(base).is_absolute() or base.startswith((".", "~"))
    return Path(base).name if is_path else base


def scaling_of(config: Mapping[str, Any]) -> float:
    """alpha / rank of all layers.

    Raises:
        SpaceError: they differ.
    """
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    alpha, r = config["lora_alpha"], config["r"]
    pairs = [(alpha, r)]
    pairs += [(alphas.get(name, alpha), ranks.get(name, r)) for name in sorted({*ranks, *alphas})]
    first, *others = [alpha / rank for alpha, rank in pairs]
    if any(abs(other - first) > 1e-9 * abs(first) for other in others):
        raise SpaceError(
            "the layers' alpha / rank differ, so one rank and one alpha would be another memory",
            expected="one alpha / rank for all layers, as milp_ray trains",
            remedy="hand it over with its patterns",
        )
    return float(first)


def _rank_of(name: str, tensor: RawTensor) -> int:
    return tensor.shape[0 if ".lora_A." in name else 1]


def _filled(name: str, tensor: RawTensor, rank: int) -> RawTensor:
    rows, columns = tensor.shape
    return tensor.padded(rank, columns) if ".lora_A." in name else tensor.padded(rows, rank)
