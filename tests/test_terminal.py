"""How a process ends: at once where a thread computes that nothing can interrupt, else as Python
ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: elsewhere a thread of another test may still compute.
_LEAVES = """
import atexit, threading
from milp_ray.search.core.threads import ComputeThread
from milp_ray.terminal import leave
atexit.register(print, "as Python ends")
{thread}.start()
leave(3)
"""


@pytest.mark.parametrize(
    ("thread", "said"),
    [
        ("ComputeThread(threading.Event().wait, name='of any name')", ""),
        (
            "threading.Thread(target=threading.Event().wait, name='proposer-0', daemon=True)",
            "as Python ends\n",
        ),
    ],
    ids=["one that computes", "another"],
)
def test_a_process_in_which_a_thread_computes_ends_at_once(thread: str, said: str) -> None:
    script = _LEAVES.format(thread=thread)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (3, said), ended.stderr
