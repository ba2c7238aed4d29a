"""The weights of a base that is divided: read tensor by tensor, each rank what it needs, never the whole.

A model that `from_pretrained` makes on the meta device has names, shapes and number formats, and no weights.
:class:`Weights` knows where in the safetensors files each of them lies, and how to read a few rows of one.
Who keeps which rows is :mod:`milp_ray.model.parallel.sharding`'s. Files that hold other tensors than the
model does (pickled, quantised, converted on the way), and models by remote code, are not read here: they are
loaded whole, then divided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from milp_ray.config.models import ModelSettings
from milp_ray.memory.modules import put
from milp_ray.model.load_errors import readable
from milp_ray.model.weights import weight_files


@dataclass(frozen=True)
class Weights:
    """Where the weights of a model lie.

    Attributes:
        path: of the model, for errors.
        places: name of a parameter -> file, and its name there; every name of a tied one.
    """

    path: str
    places: Mapping[str, tuple[Path, str]]

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Some rows of a parameter, or all, on the host, in the file's number format.

        Raises:
            ModelError: the file is damaged or gone.
            StorageError: the storage does not answer.
            ClusterError: no memory was left.
        """
        file, key = self.places[name]
        # Not mapped into memory: of a mapped file all that was read counts as this process's, and storage
        # that fails would kill it.
        with readable(self.path), safe_open(file, framework="pt", backend="pread") as tensors:
            values: Tensor = tensors.get_tensor(key) if rows is None else tensors.get_slice(key)[rows]
            return values

    def fill(self, model: nn.Module, part: nn.Module, device: torch.device, read: bool) -> None:
        """Make the parameters of a part of a meta model real; those that are tied stay so.

        Args:
            model: whose names the weights have.
            part: of it.
            device: where the parameters are to be.
            read: their weights, too; else they hold anything.

        Raises:
            MilpRayError: see :meth:`read`.
        """
        homes: dict[nn.Parameter, list[str]] = {}
        wanted = {parameter for parameter in part.parameters() if parameter.is_meta}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if parameter in wanted:
                homes.setdefault(parameter, []).append(name)
        for parameter, names in homes.items():
            if read:
                values = self.read(names[0]).to(device, parameter.dtype)
            else:
                values = torch.empty_like(parameter, device=device)
            real = nn.Parameter(values, requires_grad=parameter.requires_grad)
            for name in names:
                put(model, name, real)


def streamed(settings: ModelSettings, config: Any) -> bool:
    """Whether a divided base may be read by :class:`Weights`, as far as its configuration says."""
    # A configuration may name its weights' file, and what was quantised is no tensor of the model.
    special = ("quantization_config", "transformers_weights")
    return not settings.trust_remote_code and all(getattr(config, name, None) is None for name in special)


def weights_of(model: Any, settings: ModelSettings) -> Weights | None:
    """Where the weights of a model lie that ``from_pretrained`` made on the meta device, with none missing.

    Its buffers, which are small, are made real.

    Returns:
        None where its files hold other tensors than it does.

    Raises:
        MilpRayError: see :meth:`Weights.read`.
    """
    # Transformers keeps what it had to rename or to convert; an adapter's folder leads to another one.
    if getattr(model, "_weight_conversions", True) or getattr(model, "_hf_peft_config_loaded", False):
        return None
    with readable(settings.path):
        files = weight_files(settings)
        found: dict[str, tuple[Path, str]] = {}
        known = model.state_dict().keys()
        for file in files:
            with safe_open(file, framework="pt", backend="pread") as tensors:
                for key in tensors.keys():  # noqa: SIM118  (not a mapping)
                    found[_name_of(key, f"{model.base_model_prefix}.", known)] = (file, key)
    names: dict[Tensor, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(tensor, []).append(name)
    places: dict[str, tuple[Path, str]] = {}
    for same in names.values():
        there = next((found[name] for name in same if name in found), None)
        if there is None:
            return None
        places |= dict.fromkeys(same, there)
    weights = Weights(settings.path, places)
    _make_buffers(model, weights)
    _tie(model, weights)
    return weights


def _name_of(key: str, prefix: str, known: Any) -> str:
    """A tensor's name in the model: checkpoints of its inner model lack the prefix, or have one too many."""
    other = key.removeprefix(prefix) if key.startswith(prefix) else prefix + key
    return other if other in known else key


def _tie(model: Any, weights: Weights) -> None:
    """Tie what the files hold twice, if it is equal, which ``from_pretrained`` cannot see without weights."""
    for name, other in getattr(model, "all_tied_weights_keys", {}).items():
        tied = model.get_parameter(other)
        if weights.places[name] == weights.places[other]:
            continue
        if torch.equal(weights.read(name), weights.read(other)):
            put(model, name, tied)


def _make_buffers(model: Any, weights: Weights) -> None:
    """Buffers that are saved are read, the others (rotary frequencies, say) computed as ``from_pretrained``
    computes them: by the model's own initialisation, on the host."""
    for name, buffer in list(model.named_buffers(remove_duplicate=False)):
        if name in weights.places:
            put(model, name, weights.read(name).to(buffer.dtype))
        else:
            put(model, name, torch.empty_like(buffer, device="cpu"))
            model.get_submodule(name.rpartition(".")[0])._is_hf_initialized = False
    model.initialize_weights()
