"""The base model that a worker process loads once: run folder, threads, process group, weights.

Every worker loads its base this way, whether it works alone, as a rank of a group in the search, or
in the final job.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import ray

from milp_ray.config.models import Study
from milp_ray.core_dumps import no_core_dumps
from milp_ray.errors import ClusterError, MilpRayError, exception_site
from milp_ray.layout import META
from milp_ray.tune.cluster.shared import check_sees

if TYPE_CHECKING:
    from milp_ray.model.base import BaseModel
    from milp_ray.model.parallel.rendezvous import Rendezvous

# Seconds that a base may take to load, and that ranks wait for each other: files may be far away.
LOADING_SECONDS = 3600.0


def meet_at(address: str) -> None:
    """Have this process meet others at one of its machine's addresses.

    By itself, gloo would tell others the address of the host's name, which on many machines is
    127.0.1.1, and NCCL would take any address that it finds. A variable that is set already stays.
    """
    found = psutil.net_if_addrs().items()
    names = [name for name, given in found if any(one.address == address for one in given)]
    if not names:
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", names[0])
    if not ipaddress.ip_address(address).is_loopback:  # NCCL refuses loopback even on one machine
        os.environ.setdefault("NCCL_SOCKET_IFNAME", names[0])


@contextlib.contextmanager
def _watched(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer, by a thread that needs no lock of Python's."""
    # File 2 becomes the worker's log. It gets each thread's stack, and no value.
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _unusable_gpu() -> ClusterError:
    return ClusterError(
        "a worker was given a GPU and cannot use it",
        where=f"node {ray.util.get_node_ip_address()}",
        expected="a driver, and PyTorch built for it, on every node that offers GPUs to Ray",
        remedy="mend the node or take it out of the cluster, or set model.device to cpu; then resume",
    )


def resident_base(
    study: Study,
    root: Path,
    cpus: float,
    rendezvous: Rendezvous | None = None,
    *,
    marker: str = META,
) -> BaseModel:
    """Load a study's base in this process, divided over the ranks of ``rendezvous`` if given.

    A process that takes ``LOADING_SECONDS`` to load hangs: it ends, and its log says where it hung.

    Args:
        study: as workers read it.
        root: the run folder, which this machine must see.
        cpus: number of CPUs that the process may use.
        rendezvous: of the group that the process becomes a rank of; None: it works alone.
        marker: name of a file in the folder by which it is known.

    Raises:
        MilpRayError: something keeps this worker, and so any, from working.
        RuntimeError: the ranks did not meet, or one of them was lost.
    """
    import torch

    from milp_ray.model.base import device_of, load_base
    from milp_ray.model.limits import limit_memory
    from milp_ray.model.parallel.group import Ranks
    from milp_ray.model.parallel.sharding import ALONE, Parallel

    no_core_dumps()
    torch.set_num_threads(max(1, int(cpus)))
    settings = study.ray
    if study.model.device == "cuda" and not torch.cuda.is_available():
        raise _unusable_gpu()
    try:
        check_sees(root, marker)  # each rank for itself: if one does not, whoever started the ranks ends all
        parallel = ALONE
        if rendezvous is not None:
            meet_at(ray.util.get_node_ip_address())
            group = Ranks(rendezvous, device_of(study.model))
            parallel = Parallel(group, settings.parallelism, settings.offload)
        with _watched(LOADING_SECONDS), parallel.group.extended_timeout(LOADING_SECONDS):
            base = load_base(study.model, parallel)
        limit_memory(settings, base.device)
    except MilpRayError:
        raise
    except Exception as error:
        if rendezvous is not None and isinstance(error, RuntimeError):
            raise  # most likely another rank was lost: whoever started the ranks tries again
        raise ClusterError(
            f"a worker could not be set up: {exception_site(error)}",
            expected="a worker that imports the pinned packages and has room for the base model",
            remedy="look into the worker's log in Ray's session folder; is another job on its GPU?",
        ) from None
    # All objects of now stay: garbage collections after a trial need not look through them.
    gc.collect()
    gc.freeze()
    return base
