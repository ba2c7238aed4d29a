"""Errors of loading a base, told apart: transient ones, and models that cannot be loaded at all.

Transient are storage that does not answer and memory that is taken; such an error ends with exit
code 1. A :class:`ModelError` recurs however often loading is tried, and ends with 2.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from milp_ray.errors import ClusterError, MilpRayError, ModelError, StorageError, exception_site, own_words
from milp_ray.model.limits import GIB, is_out_of_memory
from milp_ray.model.parallel.sharding import ALONE, Parallel
from milp_ray.model.requirements import load_fault

# What an OSError says of the files themselves; all others are the storage's, and transient.
_FILES_FAULT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP}
# Variables that name folders of libraries' own, which these make while a model is loaded.
_OWN_FOLDERS = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TRITON_HOME", "TORCH_HOME", "MPLCONFIGDIR")


def check_transient(error: Exception) -> None:
    """Raise what an error stands for if it is transient, and not the model's fault.

    Raises:
        ClusterError: no memory was left.
        StorageError: the storage did not answer, or a library's own folder cannot be made.
    """
    _check_own_folders(error)
    if is_out_of_memory(error):
        raise ClusterError(
            "no memory was left to read the base model",
            where="model.path",
            expected="room for the base model in the host's memory",
            remedy="end what else takes memory there, or let fewer workers share it (ray.memory_per_worker)",
        ) from error
    if isinstance(error, OSError) and error.errno and error.errno not in _FILES_FAULT:
        raise StorageError(
            f"the base model could not be read: {error.strerror or type(error).__name__}",
            where="model.path",
            expected="storage that answers",
            remedy="check the storage that the model is on; then resume",
        ) from error


def _check_own_folders(error: BaseException | None) -> None:
    """Tell a library's own folder from the model's: importing PyTorch makes that of its compiler.

    Raises:
        StorageError: such a folder is the error's cause.
    """
    named = {name: value for name in _OWN_FOLDERS if (value := os.environ.get(name))}
    named.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_")
    while error is not None:
        if isinstance(error, OSError) and isinstance(error.filename, str):
            for name, folder in named.items():
                # A path in it, or the first folder above it that could not be made.
                if error.filename.startswith(folder) or Path(folder).is_relative_to(error.filename):
                    raise StorageError(
                        f"the folder {error.filename} cannot be used: {error.strerror}",
                        where=name,
                        expected="a folder that can be made and written, for what libraries keep there",
                        remedy=f"set {name} to one",
                    ) from error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def translate_load_errors(path: str) -> Iterator[None]:
    """Inside the block, errors of reading the weights at ``path`` become our own.

    Raises:
        ModelError: they are not the model's, damaged or missing, or need a package that is missing.
        StorageError, ClusterError: see :func:`check_transient`.
    """
    try:
        yield
    except MilpRayError:
        raise
    except Exception as error:  # damaged files raise many kinds in safetensors and transformers
        check_transient(error)
        raise load_fault(error, "the base model") or ModelError(
            f"the base model at {path!r} cannot be loaded ({exception_site(error)}: {own_words(error)})",
            where="model.path",
            expected="a config.json that transformers knows, and weights of its architecture",
            remedy="fetch the model again, or correct model.path",
        ) from error


@contextlib.contextmanager
def translate_out_of_memory(
    model: nn.Module, device: torch.device, parallel: Parallel = ALONE
) -> Iterator[None]:
    """Inside the block, where the base is moved to its device, running out of memory is our error.

    Args:
        model: the base, whose size is told.
        device: of this rank.
        parallel: whether the base is sharded.

    Raises:
        ClusterError: others take the memory.
        ModelError: the base, or its shard, is larger than the GPU.
    """
    takes, what = sum(parameter.nbytes for parameter in model.parameters()) / GIB, "the base model"
    if parallel.sharded:
        takes, what = takes / parallel.group.size, "a worker's part of the base model"
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise _no_room(what, takes, device) from None


def _no_room(what: str, takes: float, device: torch.device) -> MilpRayError:
    """``takes``: GiB."""
    if device.type != "cuda":
        return ClusterError(
            f"{what} takes {takes:.2f} GiB, and so much memory is not left",
            expected="room for the base model in a worker's memory",
            remedy="end what else takes memory there, or let fewer workers share it (ray.memory_per_worker)",
        )
    free, total = (number / GIB for number in torch.cuda.mem_get_info(device))
    if takes > total:
        return ModelError(
            f"{what} takes {takes:.2f} GiB, more than the {total:.2f} GiB of a GPU",
            where="model.path",
            expected="a base model that fits the GPU",
            remedy="divide it over more workers (ray.parallelism zero3 or fsdp), set model.dtype to "
            "bfloat16, or choose a smaller base model or larger GPUs",
        )
    free += torch.cuda.memory_reserved(device) / GIB  # moved there before it failed
    return ClusterError(
        f"{what} takes {takes:.2f} GiB, and {free:.2f} of the GPU's {total:.2f} GiB are free",
        expected="a GPU with room for the base model",
        remedy="end what else is on the GPU, or let fewer workers share it (ray.gpus_per_worker)",
    )
