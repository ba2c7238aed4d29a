"""The weights of a sharded base, read tensor by tensor: no rank reads all of them.

On the meta device, `from_pretrained` makes a model with names, shapes and dtypes, and no weights.
:class:`Weights` knows the safetensors file of each parameter, and reads a few rows of one. Which
rank keeps which rows is :mod:`milp_ray.model.parallel.sharding`'s. Does *not* cover files that hold
other tensors than the model (pickled, GGUF, quantised, converted on the way), nor models by remote
code: those are loaded whole, then sharded.
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
from milp_ray.model.gguf_file import gguf_of
from milp_ray.model.load_errors import translate_load_errors
from milp_ray.model.weights import weight_files


@dataclass(frozen=True)
class Weights:
    """The files of a model's weights.

    Attributes:
        path: of the model, for errors.
        tensor_files: name of a parameter -> its file, and its name there; each name of a tied one.
    """

    path: str
    tensor_files: Mapping[str, tuple[Path, str]]

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Some rows of a parameter, or all, on the host, in the file's dtype.

        Raises:
            ModelError: the file is damaged or gone.
            StorageError: the storage does not answer.
            ClusterError: no memory was left.
        """
        file, key = self.tensor_files[name]
        # Not mapped into memory: the pages of a mapped file that were read count as this process's
        # memory, and storage that fails would kill it.
        with translate_load_errors(self.path), safe_open(file, framework="pt", backend="pread") as tensors:
            values: Tensor = tensors.get_tensor(key) if rows is None else tensors.get_slice(key)[rows]
            return values

    def materialize(self, model: nn.Module, module: nn.Module, device: torch.device, read: bool) -> None:
        """Make the meta parameters of a module real; tied ones stay tied.

        Args:
            model: whose names the weights have.
            module: one of its modules.
            device: where the parameters will be.
            read: whether to read their weights; else their values are undefined.

        Raises:
            MilpRayError: see :meth:`read`.
        """
        names_of: dict[nn.Parameter, list[str]] = {}
        on_meta = {parameter for parameter in module.parameters() if parameter.is_meta}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if parameter in on_meta:
                names_of.setdefault(parameter, []).append(name)
        for parameter, names in names_of.items():
            if read:
                values = self.read(names[0]).to(device, parameter.dtype)
            else:
                values = torch.empty_like(parameter, device=device)
            real = nn.Parameter(values, requires_grad=parameter.requires_grad)
            for name in names:
                put(model, name, real)


def can_stream(settings: ModelSettings, config: Any) -> bool:
    """Whether :class:`Weights` can read a base, as far as its configuration says."""
    # A configuration may name a file of its own, and quantised tensors are not the model's.
    special = ("quantization_config", "transformers_weights")
    if settings.trust_remote_code or gguf_of(settings) is not None:
        return False
    return all(getattr(config, name, None) is None for name in special)


def locate_weights(model: Any, settings: ModelSettings) -> Weights | None:
    """The weights of a model that ``from_pretrained`` made on the meta device, with none missing.

    The model's buffers, which are small, are made real.

    Returns:
        None where the files hold other tensors than the model.

    Raises:
        MilpRayError: see :meth:`Weights.read`.
    """
    # Transformers notes what it had to rename or to convert; an adapter's folder names another one.
    if getattr(model, "_weight_conversions", True) or getattr(model, "_hf_peft_config_loaded", False):
        return None
    with translate_load_errors(settings.path):
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
    tensor_files: dict[str, tuple[Path, str]] = {}
    for tied in names.values():
        file_and_key = next((found[name] for name in tied if name in found), None)
        if file_and_key is None:
            return None
        tensor_files |= dict.fromkeys(tied, file_and_key)
    weights = Weights(settings.path, tensor_files)
    _make_buffers(model, weights)
    _tie(model, weights)
    return weights


def _name_of(key: str, prefix: str, known: Any) -> str:
    """A tensor's name in the model. Files of the inner model lack the prefix, or have it twice."""
    other = key.removeprefix(prefix) if key.startswith(prefix) else prefix + key
    return other if other in known else key


def _tie(model: Any, weights: Weights) -> None:
    """Tie parameters that files hold twice, if equal; ``from_pretrained`` has no weights here."""
    for name, other in getattr(model, "all_tied_weights_keys", {}).items():
        tied = model.get_parameter(other)
        if weights.tensor_files[name] == weights.tensor_files[other]:
            continue
        if torch.equal(weights.read(name), weights.read(other)):
            put(model, name, tied)


def _make_buffers(model: Any, weights: Weights) -> None:
    """Read the buffers that are saved, and compute the others on the host.

    The model's own initialisation computes them (rotary frequencies, say), as ``from_pretrained``
    has it do.
    """
    for name, buffer in list(model.named_buffers(remove_duplicate=False)):
        if name in weights.tensor_files:
            put(model, name, weights.read(name).to(buffer.dtype))
        else:
            put(model, name, torch.empty_like(buffer, device="cpu"))
            model.get_submodule(name.rpartition(".")[0])._is_hf_initialized = False
    model.initialize_weights()
