"""What keeps a worker from its base and may pass: storage that does not answer, memory that is not left.

Told from a model that cannot be loaded however often it is tried: the first ends with exit code 1, the
second, :class:`ModelError`, with 2.
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

# What an OSError says of the files themselves; all others are the storage's, and may pass.
_FILES_FAULT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP}
# What names folders that libraries keep for themselves, and make while a model is loaded.
_OWN_FOLDERS = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TRITON_HOME", "TORCH_HOME", "MPLCONFIGDIR")


def check_passing(error: Exception) -> None:
    """Tell what may pass, and is not the model's fault, from a model that cannot be read.

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
    """PyTorch makes the folder of its compiler as soon as it is imported: where it cannot, no model is wrong.

    Raises:
        StorageError: that is the error, or what it came from.
    """
    named = {name: value for name in _OWN_FOLDERS if (value := os.environ.get(name))}
    named.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_")
    while error is not None:
        if isinstance(error, OSError) and isinstance(error.filename, str):
            for name, folder in named.items():
                # What lies in it, or the first folder above it that could not be made.
                if error.filename.startswith(folder) or Path(folder).is_relative_to(error.filename):
                    raise StorageError(
                        f"the folder {error.filename} cannot be used: {error.strerror}",
                        where=name,
                        expected="a folder that can be made and written, for what libraries keep there",
                        remedy=f"set {name} to one",
                    ) from error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def readable(path: str) -> Iterator[None]:
    """What fails inside, where the weights of the model at ``path`` are read, is said as what it is.

    Raises:
        ModelError: they are not the model's, damaged, or not there; or a package that they need is not.
        StorageError, ClusterError: see :func:`check_passing`.
    """
    try:
        yield
    except MilpRayError:
        raise
    except Exception as error:  # safetensors, pickle and transformers raise many kinds for damaged files
        check_passing(error)
        raise load_fault(error, "the base model") or ModelError(
            f"the base model at {path!r} cannot be loaded ({exception_site(error)}: {own_words(error)})",
            where="model.path",
            expected="a config.json that transformers knows, and weights of its architecture",
            remedy="fetch the model again, or correct model.path",
        ) from error


@contextlib.contextmanager
def fitting(model: nn.Module, device: torch.device, parallel: Parallel = ALONE) -> Iterator[None]:
    """Where ``device`` has no room for what of the base is put there inside, say what it takes and is there.

    Raises:
        ClusterError: the room is taken by others.
        ModelError: the base is larger than the GPU.
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
    free += torch.cuda.memory_reserved(device) / GIB  # what was placed before it failed
    return ClusterError(
        f"{what} takes {takes:.2f} GiB, and {free:.2f} of the GPU's {total:.2f} GiB are free",
        expected="a GPU with room for the base model",
        remedy="end what else is on the GPU, or let fewer workers share it (ray.gpus_per_worker)",
    )
