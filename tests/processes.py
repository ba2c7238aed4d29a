"""Processes by what they call themselves: Ray gives its workers the names of what they are and do."""

from __future__ import annotations

import psutil


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
