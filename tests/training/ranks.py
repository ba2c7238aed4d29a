"""Functions on several ranks, each a fresh process."""

from __future__ import annotations

import multiprocessing
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

from milp_ray.training.parallel.group import Meeting, Ranks


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_main(
    work: Callable[..., Any], rank: int, size: int, port: int, arguments: tuple[Any, ...], results: Any
) -> None:
    torch.set_num_threads(1)
    try:
        group = Ranks(Meeting(f"127.0.0.1:{port}", rank, size, timeout=100), torch.device("cpu"))
        results.put((rank, work(group, *arguments), ""))
        group.close()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))


def on_ranks(work: Callable[..., Any], *arguments: Any, size: int = 2) -> list[Any]:
    """What ``work(group, *arguments)`` returns on every rank, each a fresh process."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=rank_main, args=(work, rank, size, port, arguments, results))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        found = {rank: (value, error) for rank, value, error in (results.get(timeout=300) for _ in processes)}
    finally:
        for process in processes:
            process.join(20)
            if process.is_alive():
                process.kill()
    for rank in range(size):
        assert not found[rank][1], found[rank][1]
    return [found[rank][0] for rank in range(size)]
