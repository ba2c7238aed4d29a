"""Limits of a worker's memory, so that a trial that is too large fails, and nothing else.

Without one, the kernel or Ray ends whole processes when a machine's memory runs out, whichever
asked for it. With one, the allocation that goes too far is refused, the trial fails with its size
named (:class:`OutOfMemory`), and the worker goes on to the next trial.
"""

from __future__ import annotations

import contextlib
import resource
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from milp_ray.config.models import RaySettings
from milp_ray.errors import ModelError, TrialFailed

GIB = 2**30
_REFUSED = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
_STATUS = Path("/proc/self/status")
_UNCOUNTED = GIB  # of a GPU's memory that CUDA and libraries take beside what PyTorch counts


class OutOfMemory(TrialFailed):
    """The device, or the host, had no memory for a trial or a test."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, PyTorch or the system refused an allocation, on a device or the host."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(t in str(error).lower() for t in _REFUSED)


@contextlib.contextmanager
def infeasible(reason: str, release: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Inside the block, running out of memory becomes :class:`OutOfMemory`.

    Args:
        reason: of the error.
        release: frees what is still held then; called before the error is raised.
    """
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # Its frames hold tensors, and whoever called this holds the frames.
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
    release()
    torch.cuda.empty_cache()  # nothing where no GPU is in use
    raise OutOfMemory(reason)


def limit_memory(settings: RaySettings, device: torch.device) -> None:
    """Limit the memory of this process from now on; once per process, with the base loaded.

    On a GPU that workers share (``gpus_per_worker`` below 1), each gets its share of the memory. In
    the host's memory, ``memory_per_worker`` limits all that the process holds, by ``RLIMIT_DATA``
    (Linux only).

    Raises:
        ModelError: with the base the process exceeds a limit already, as any worker would.
    """
    share = settings.gpus_per_worker
    if device.type == "cuda" and isinstance(share, float) and 0 < share < 1:
        _limit_gpu(share, device)
    if settings.memory_per_worker is None or not _STATUS.exists():
        return
    limit = settings.memory_per_worker * GIB
    used = _status("VmRSS")
    if used >= limit:
        raise ModelError(
            f"a worker holds {used / GIB:.2f} GiB with the base model loaded, more than it may",
            where="ray.memory_per_worker",
            expected=f"more than {used / GIB:.2f}, and room for a trial",
            remedy="raise ray.memory_per_worker, or lower ray.max_concurrent and leave it null",
        )
    # The limit counts reserved memory, which is more than is held: the difference is added.
    bound = int(_status("VmData") + limit - used)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        bound = min(bound, hard)
    with contextlib.suppress(OSError, ValueError):  # a platform that knows no such limit
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


def _limit_gpu(share: float, device: torch.device) -> None:
    total = torch.cuda.get_device_properties(device).total_memory
    limit, used = share * total - _UNCOUNTED, torch.cuda.memory_reserved(device)
    if used >= limit:
        raise ModelError(
            f"a worker holds {used / GIB:.1f} GiB of a GPU with the base model loaded, and its share is "
            f"{limit / GIB:.1f}",
            where="ray.gpus_per_worker",
            expected=f"a share of {total / GIB:.0f} GiB in which a trial has room beside the base",
            remedy="raise ray.gpus_per_worker, or divide the base over several GPUs (ray.parallelism: zero3)",
        )
    torch.cuda.set_per_process_memory_fraction(limit / total, device)


def _status(name: str) -> int:
    """A value of the process's status, in bytes; 0 where it is not there."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
