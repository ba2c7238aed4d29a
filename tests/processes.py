"""Processes by what they call themselves (Ray names its workers after what they are and do), and
waiting."""

from __future__ import annotations

import contextlib
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


def titles(root: int) -> set[str]:
    """What a process's living descendants call themselves."""
    found = set()
    for process in titled("", root):
        with contextlib.suppress(psutil.Error):
            found.add(" ".join(process.cmdline()))
    return found


def listening_addresses(pid: int) -> set[str]:
    """The addresses at which a process and its descendants listen."""
    found: set[str] = set()
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add(connection.laddr.ip.removeprefix("::ffff:"))
    return found
