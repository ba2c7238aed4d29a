"""Memories for others: copies of adapters that name no path of this machine, of one rank if asked.

A memory has a rank per layer. PEFT reads that from ``rank_pattern`` and ``alpha_pattern``; many
other readers know one rank or one alpha for a whole file (docs/serving.md). Zeros fill lesser ranks
up to one: B A is a sum over ranks, and a row of zeros in A beside a column of zeros in B adds
nothing, so the function is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import pad

from milp_ray.errors import SpaceError
from milp_ray.memory.adapter_notes import NOTE, note_of_copy
from milp_ray.memory.adapters import PREFIX, read_adapter, write_adapter
from milp_ray.memory.architectures import Architecture
from milp_ray.storage import write_synced

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
    config, weights = read_adapter(source)
    config.base_model_name_or_path = portable_name(config.base_model_name_or_path or "")
    if one_rank:
        config, weights = with_one_rank(config, weights)
    write_adapter(folder, config, weights)
    if (note := note_of_copy(folder, source)) is not None:
        write_synced(folder / NOTE, note)


def with_one_rank(
    config: LoraConfig, weights: Mapping[str, Tensor], rank: int | None = None
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The same function with one rank and one alpha: zeros fill A's rows up, and B's columns.

    Args:
        config: of the adapter; not changed.
        weights: under PEFT's names; A is ``r x in``, B ``out x r``.
        rank: of the result; None: the largest one of the adapter.

    Raises:
        SpaceError: ``rank`` is below a layer's, or the layers' alpha / rank differ.
    """
    ranks = {name: _rank_of(name, tensor) for name, tensor in weights.items()}
    wanted = max(ranks.values()) if rank is None else rank
    if wanted < max(ranks.values()):
        raise SpaceError(
            f"rank {wanted} is below a layer's, {max(ranks.values())}",
            expected=f"a rank of at least {max(ranks.values())}",
            remedy="bound the ranks of the next search by memory.max_rank",
        )
    scaling = _scaling(config)
    alpha = scaling * wanted
    result = copy.deepcopy(config)
    result.r, result.lora_alpha = wanted, int(alpha) if alpha == int(alpha) else alpha
    result.rank_pattern, result.alpha_pattern = {}, {}
    return result, {name: _filled(name, tensor, wanted) for name, tensor in weights.items()}


def in_every_layer(
    config: LoraConfig, weights: Mapping[str, Tensor], architecture: Architecture
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The same function with a LoRA on every layer: of zeros where the memory has none.

    Args:
        config: with one rank, as :func:`with_one_rank` gives it; not changed.
        weights: under PEFT's names.
        architecture: of the base model.
    """
    result, rank = copy.deepcopy(config), int(config.r)
    like = next(iter(weights.values()))
    filled: dict[str, Tensor] = {}
    for layer in range(architecture.num_layers):
        for module in architecture.modules(layer):
            for part, shape in (("A", (rank, module.in_features)), ("B", (module.out_features, rank))):
                name = f"{PREFIX}{module.name}.lora_{part}.weight"
                filled[name] = weights[name] if name in weights else like.new_zeros(shape)
    short = {part.rpartition(".")[2] for part, _ in architecture.parts}
    if not short & _OF_ATTENTION_TOO:  # a short name would be that of modules without a LoRA as well
        result.target_modules = sorted(short)
    else:
        every = range(architecture.num_layers)
        result.target_modules = sorted(m.name for layer in every for m in architecture.modules(layer))
    return result, filled


def portable_name(base: str) -> str:
    """What a base model is called elsewhere: a hub name as it is, the last part of a path."""
    is_path = Path(base).is_absolute() or base.startswith((".", "~"))
    return Path(base).name if is_path else base


def _scaling(config: LoraConfig) -> float:
    """alpha / rank of all layers."""
    names = {*config.rank_pattern, *config.alpha_pattern}
    pairs = [(config.lora_alpha, config.r)] + [
        (config.alpha_pattern.get(name, config.lora_alpha), config.rank_pattern.get(name, config.r))
        for name in sorted(names)
    ]
    first, *others = [alpha / rank for alpha, rank in pairs]
    if any(abs(other - first) > 1e-9 * abs(first) for other in others):
        raise SpaceError(
            "the layers' alpha / rank differ, so one rank and one alpha would be another memory",
            expected="one alpha / rank for all layers, as milp_ray trains",
            remedy="hand it over with its patterns",
        )
    return float(first)


def _rank_of(name: str, tensor: Tensor) -> int:
    return int(tensor.shape[0 if ".lora_A." in name else 1])


def _filled(name: str, tensor: Tensor, rank: int) -> Tensor:
    missing = rank - _rank_of(name, tensor)
    filled = pad(tensor, (0, 0, 0, missing) if ".lora_A." in name else (0, missing))
    return filled.to(tensor.dtype).contiguous() if missing else torch.clone(tensor).contiguous()
