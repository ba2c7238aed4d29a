"""How a process ends: at once where a thread computes that nothing can interrupt, else as Python ends."""

from __future__ import annotations

import os
import threading

import pytest

from milp_ray.search.core.threads import ComputeThread
from milp_ray.terminal import leave


class Ended(Exception):  # noqa: N818  (an outcome)
    pass


def test_a_process_in_which_a_thread_computes_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", ended)
    over = threading.Event()
    thread = ComputeThread(over.wait, name="of any name")
    thread.start()
    try:
        with pytest.raises(Ended, match=r"^3$"):
            leave(3)
    finally:
        over.set()
        thread.join()
    named = threading.Thread(target=over.wait, name="proposer-0")
    named.start()
    with pytest.raises(SystemExit) as end:
        leave(3)
    assert end.value.code == 3
