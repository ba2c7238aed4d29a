"""Functions on several ranks, each a process of its own, forked from one that has done the imports.

Imports take five seconds of a processor, more than most ranks compute. The fork server computes
nothing, so it has no threads that a fork would lose.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch

from milp_ray.model.parallel.group import Ranks
from milp_ray.model.parallel.rendezvous import Rendezvous

PRELOADED = ["milp_ray.trial.lifecycle", "transformers.models.llama.modeling_llama"]


def rank_main(
    rank: int, size: int, address: str, environment: dict[str, str], called: bytes, results: Any
) -> None:
    """``called``: function and arguments, some of which read the environment when unpickled."""
    os.environ.update(environment)  # the server of forks has that of its own start
    torch.set_num_threads(1)
    try:
        work, arguments = pickle.loads(called)
        group = Ranks(Rendezvous(address, rank, size, timeout=100), torch.device("cpu"))
        results.put((rank, work(group, *arguments), ""))
        group.close()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))


def on_ranks(work: Callable[..., Any], *arguments: Any, size: int = 2) -> list[Any]:
    """What ``work(group, *arguments)`` returns on every rank, each a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        common = f"{folder}/store", {**os.environ}, pickle.dumps((work, arguments)), results
        processes = [context.Process(target=rank_main, args=(rank, size, *common)) for rank in range(size)]
        for process in processes:
            process.start()
        try:
            answers = (results.get(timeout=300) for _ in processes)
            found = {rank: (value, error) for rank, value, error in answers}
        finally:
            for process in processes:
                process.join(20)
                if process.is_alive():
                    process.kill()
    for rank in range(size):
        assert not found[rank][1], found[rank][1]
    return [found[rank][0] for rank in range(size)]
