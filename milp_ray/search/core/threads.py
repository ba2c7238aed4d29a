"""Threads that compute, and one BLAS thread per proposal.

Small linear algebra gains nothing from more threads, and loses much beside busy trials.

BLAS and OpenMP threads wait for each other in every small operation. On a machine whose cores are
taken by trials that turned fits of a second into minutes (docs/findings.md).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class ComputeThread(threading.Thread):
    """A daemon thread that fits models or compiles, in code that cannot be interrupted.

    Python's own shutdown would wait for it. So a process in which one lives ends by
    :func:`milp_ray.terminal.leave`.
    """

    def __init__(self, target: Callable[..., object], args: Iterable[object] = (), *, name: str) -> None:
        super().__init__(target=target, args=tuple(args), name=name, daemon=True)

    @classmethod
    def lives(cls) -> bool:
        """Whether there is one in this process."""
        return any(isinstance(thread, cls) for thread in threading.enumerate())


_lock = threading.Lock()
_users = 0
_limit: Any = None


@contextmanager
def single_threaded() -> Iterator[None]:
    """Keep BLAS (until the last user leaves) and torch (in this thread) on one thread each."""
    import scipy.linalg  # type: ignore[import-untyped]  # noqa: F401  (its BLAS is the one that JAX calls)
    import torch
    from threadpoolctl import threadpool_limits

    global _users, _limit
    with _lock:
        if _users == 0:
            _limit = threadpool_limits(limits=1, user_api="blas")
        _users += 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        with _lock:
            _users -= 1
            if _users == 0:
                _limit.restore_original_limits()
