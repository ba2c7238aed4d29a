"""A placement as LoRA modules on a resident base model, and off again; files in PEFT's layout.

LoRA is that of docs/references.md: Hu 2022. Every module is named in full and checked afterwards,
because PEFT adapts *every* layer for an empty list and drops what it does not find. One adapter at
a time is attached; the base's own modules are kept aside and put back as the very same objects.
Training is not covered here (:mod:`milp_ray.training`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save
from torch import Tensor, nn

from milp_ray.errors import SpaceError, StorageError
from milp_ray.layout import ADAPTER_CONFIG
from milp_ray.memory.adapter_files import PREFIX, WEIGHTS, opened
from milp_ray.memory.adapter_notes import NOTE, note_of
from milp_ray.memory.architectures import Architecture
from milp_ray.memory.modules import put
from milp_ray.memory.placement import Placement
from milp_ray.storage import write_folder, write_synced

# Keys that are written whatever PEFT's defaults are: other readers have other defaults, or none.
_ALWAYS = frozenset(
    {"peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules"}
)
_NAME = "default"


def lora_config(
    placement: Placement, architecture: Architecture, scaling: float = 1.0, dropout: float = 0.0
) -> LoraConfig:
    """The PEFT configuration of a placement: exact module names, one rank and alpha for each.

    ``r`` is the largest rank; modules of another rank are in ``rank_pattern`` and
    ``alpha_pattern``, so that alpha / rank = ``scaling`` everywhere.

    Raises:
        SpaceError: the placement is empty (no memory has no adapter), names a layer that the model
            lacks, or has a rank above the layer width.
    """
    if not placement.ranks:
        raise SpaceError(
            "an empty placement has no adapter",
            remedy="no memory is the base model itself; measure that instead",
        )
    ranks = {module.name: rank for layer, rank in placement.ranks for module in architecture.modules(layer)}
    largest = max(ranks.values())
    if largest > architecture.width:
        raise SpaceError(
            f"rank {largest} is above the layer width of the model, {architecture.width}",
            expected=f"ranks of at most {architecture.width}",
            remedy="use a placement that was made for this base model",
        )
    others = {name: rank for name, rank in ranks.items() if rank != largest}
    config = LoraConfig(
        r=largest,
        lora_alpha=_alpha(largest, scaling),
        target_modules=sorted(ranks),
        rank_pattern=others,
        alpha_pattern={name: _alpha(rank, scaling) for name, rank in others.items()},
        lora_dropout=dropout,
        fan_in_fan_out=architecture.transposed,
        bias="none",
        task_type="CAUSAL_LM",
    )
    _check_patterns(config, ranks)
    return config


@dataclass(frozen=True)
class Attached:
    """An adapter that sits on a model right now.

    Attributes:
        config: what it was made from, unchanged by PEFT.
        layers: the LoRA modules by the name of the module they wrap.
        originals: the base's own modules by name, to be put back.
    """

    config: LoraConfig
    layers: dict[str, LoraLayer]
    originals: dict[str, nn.Module]

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in the order of module names; A before B."""
        return [matrix for layer in self.layers.values() for matrix in _matrices(layer).values()]

    def train(self, mode: bool) -> None:
        """Switch LoRA dropout on or off; nothing of the base changes."""
        for layer in self.layers.values():
            layer.lora_dropout.train(mode)

    def state(self) -> dict[str, Tensor]:
        """The weights under PEFT's names, on the CPU; copies."""
        return {name: matrix.detach().to("cpu", copy=True) for name, matrix in self._named().items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights of :meth:`state`.

        Raises:
            ValueError: they are of another adapter.
        """
        mine = self._named()
        if {name: matrix.shape for name, matrix in mine.items()} != {n: w.shape for n, w in weights.items()}:
            raise ValueError("weights of another adapter")
        for name, matrix in mine.items():
            matrix.data.copy_(weights[name])

    def _named(self) -> dict[str, nn.Parameter]:
        return {
            f"{PREFIX}{name}.{part}.weight": matrix
            for name, layer in self.layers.items()
            for part, matrix in _matrices(layer).items()
        }


def attach(model: nn.Module, config: LoraConfig) -> Attached:
    """Put fresh LoRA modules (B = 0, fp32) around the modules that ``config`` names, in place.

    A is drawn from torch's global random numbers, as PEFT does: seed them for a repeatable adapter.

    Raises:
        SpaceError: PEFT adapted other modules than asked for (nothing stays attached).
        RuntimeError: an adapter is attached already.
    """
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise RuntimeError("an adapter is attached already: detach it first")
    wanted = set(config.target_modules)
    modules = dict(model.named_modules())
    missing = sorted(wanted - modules.keys())
    if missing:
        raise SpaceError(
            f"the model has no module {missing[0]!r}", remedy="check the entry in memory/architectures.py"
        )
    originals = {name: modules[name] for name in sorted(wanted)}
    before = _Base(model)
    # PEFT shortens long lists of target modules in the configuration it is given: give it a copy.
    throwaway = copy.deepcopy(config)
    try:
        inject_adapter_in_model(throwaway, model, adapter_name=_NAME)
        layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
        if layers.keys() != wanted:
            odd = sorted(layers.keys() ^ wanted)
            raise SpaceError(f"PEFT did not adapt exactly the modules asked for: {odd[0]!r}")
        attached = Attached(config, {name: layers[name] for name in originals}, originals)
        for matrix in attached.parameters():
            matrix.data = matrix.data.to(torch.float32)
            matrix.requires_grad_(True)
        for layer in layers.values():  # autocast decides; PEFT would widen inputs that it narrows again
            layer.cast_input_dtype_enabled = False
        attached.train(False)
    except BaseException:
        before.restore()
        raise
    return attached


def detach(model: nn.Module, attached: Attached) -> None:
    """Take the adapter off: every module of the base is the very object that it was before."""
    _restore(model, attached.originals)


def save_adapter(
    attached: Attached,
    folder: Path,
    base: str,
    revision: str | None = None,
    *,
    placement: str = "",
    user: str = "",
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Write the adapter in PEFT's layout, all of it or nothing; it replaces one that is there.

    Args:
        attached: what to write.
        folder: where; its parent is made when missing.
        base: ``base_model_name_or_path`` for the configuration, as the study names it.
        revision: of a hub model.
        placement, user: its key, and its user's alias, for the note beside it; "": no note.
        beside: further files by name.

    Raises:
        StorageError: the folder cannot be written.
    """
    config = copy.deepcopy(attached.config)
    config.base_model_name_or_path, config.revision = base, revision
    state = attached.state()

    def write(draft: Path) -> None:
        for name, content in (beside or {}).items():
            write_synced(draft / name, content)
        write_adapter(draft, config, state)
        if placement:
            write_synced(draft / NOTE, note_of(draft, placement, user))

    write_folder(folder, write, commit_marker=ADAPTER_CONFIG)


def write_adapter(folder: Path, config: LoraConfig, weights: Mapping[str, Tensor]) -> None:
    """Write the two files of an adapter into a folder that is there, the configuration last.

    Of the configuration only what is no default of PEFT's: versions before 0.15 refuse keys that
    they do not know, and each version brings new ones.
    """
    write_synced(folder / WEIGHTS, save(dict(weights), metadata={"format": "pt"}))
    write_synced(folder / ADAPTER_CONFIG, _config_text(config).encode())


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The configuration and the weights of a saved adapter, not yet on any model.

    Raises:
        StorageError: a file is missing or damaged, or it is not a LoRA adapter.
        RunFolderError: its files are not those that its note was written for.
    """
    with opened(folder) as values:
        return LoraConfig.from_peft_type(**values), load_file(folder / WEIGHTS)


def attach_saved(model: nn.Module, folder: Path) -> Attached:
    """Attach a saved adapter, weights included; :func:`detach` takes it off.

    Raises:
        StorageError: the files are damaged, or do not belong to a model of this shape.
        RunFolderError: they do not belong together.
    """
    config, weights = read_adapter(folder)
    names = {key.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for key in weights}
    config.target_modules = names
    try:
        attached = attach(model, config)
    except SpaceError as error:
        raise _misfit(folder) from error
    try:
        _fill(attached, weights, folder)
    except BaseException:
        detach(model, attached)
        raise
    return attached


def matrices_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """A, ``r x in``, and B, ``out x r``, of a saved adapter's weights, by the module's own name."""
    names = sorted({key.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for key in weights})
    try:
        return {
            name: (weights[f"{PREFIX}{name}.lora_A.weight"], weights[f"{PREFIX}{name}.lora_B.weight"])
            for name in names
        }
    except KeyError:
        raise StorageError(
            "an adapter lacks a matrix of a pair",
            expected=f"lora_A and lora_B of each module in {WEIGHTS}",
            remedy="restore the folder, or train the memory again",
        ) from None


def adapted_modules(model: nn.Module) -> Iterator[str]:
    """Names of the modules that carry a LoRA right now."""
    return (name for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _fill(attached: Attached, weights: dict[str, Tensor], folder: Path) -> None:
    try:
        attached.load(weights)
    except ValueError as error:
        raise _misfit(folder) from error
    for matrix in attached.parameters():
        matrix.requires_grad_(False)


def _misfit(folder: Path) -> StorageError:
    return StorageError(
        "an adapter does not fit the base model",
        where=folder.name,
        expected="an adapter of this base model's feed-forward modules",
        remedy="load it on the base model that its adapter_config.json names",
    )


def _matrices(layer: LoraLayer) -> dict[str, nn.Parameter]:
    return {"lora_A": layer.lora_A[_NAME].weight, "lora_B": layer.lora_B[_NAME].weight}


class _Base:
    """A model as it is, to be restored whatever PEFT makes of it.

    That need not be what it was asked for: in mixtures of experts it wraps the experts of every
    layer instead, wrapper in wrapper, and names below them change.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._children = [(module, dict(module._modules)) for module in model.modules()]
        self._trainable = {parameter for parameter in model.parameters() if parameter.requires_grad}

    def restore(self) -> None:
        for module, children in self._children:
            module._modules.clear()
            module._modules.update(children)
        for parameter in self._model.parameters():
            parameter.requires_grad_(parameter in self._trainable)
        _unmark(self._model)


def _restore(model: nn.Module, originals: dict[str, nn.Module]) -> None:
    for name, module in originals.items():
        put(model, name, module)
    _unmark(model)


def _unmark(model: nn.Module) -> None:
    # PEFT marks the model as adapted; without this the next injection would merge with this one.
    for mark in ("peft_config", "active_adapter", "peft_type"):
        if mark in vars(model):
            delattr(model, mark)


def _check_patterns(config: LoraConfig, ranks: dict[str, int]) -> None:
    """Make sure that pattern keys, to PEFT regular expressions on a name's end, find themselves."""
    for name, rank in ranks.items():
        found = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
        if found != rank:
            raise SpaceError(f"the rank of module {name!r} is ambiguous: {found} instead of {rank}")


def _alpha(rank: int, scaling: float) -> float:
    alpha = rank * scaling
    return int(alpha) if alpha == int(alpha) else alpha


def _config_text(config: LoraConfig) -> str:
    defaults = LoraConfig().to_dict()
    values: dict[str, Any] = config.to_dict() | {"inference_mode": True}
    kept = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in values.items()
        if key in _ALWAYS or value != defaults.get(key)
    }
    return json.dumps(kept, indent=2, sort_keys=True) + "\n"
