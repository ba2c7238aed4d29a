"""Processes by what they call themselves (Ray names its workers after what they are and do), and waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil


def wait_for(condition: Callable[[], Any], seconds: float = 90) -> Any:
    """What ``condition`` says as soon as that is true of it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to pass")


def titled(title: str, root: int | None = None) -> list[psutil.Process]:
    """Living descendants of a process (this one unless said) whose title holds ``title``."""
    found = []
    try:
        below = psutil.Process(root).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for process in below:
        try:
            if title in " ".join(process.cmdline()):  # a zombie has none
                found.append(process)
        except psutil.Error:  # it ended meanwhile
            continue
    return found
