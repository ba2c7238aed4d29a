"""`milp-ray watch`: the report of a run that goes on, written again and again until it ends.

It reads only. A run ends when nothing is left to do, or when no driver works on it any more: none
holds it, or the heartbeat of the one that does stands still.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from milp_ray.errors import RunFolderError, StorageError
from milp_ray.layout import LEASES
from milp_ray.report.html.command import write_report
from milp_ray.report.html.model_check import WHILE_WATCHED
from milp_ray.report.html.run_data import RunData
from milp_ray.report.html.user_table import is_complete, user_table
from milp_ray.storage import get_file, names_in
from milp_ray.study.run_folder import RunFolder

_SILENCE = 120.0  # seconds after which another driver takes a run over, too


def watch(
    run: Path | str,
    every: float,
    out: Path | str | None,
    notify: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Write the report every so many seconds; ``notify`` is given a line each time.

    Args:
        run: the run folder, or its URL.
        every: seconds from the end of one report to the next.
        out: the file, as for :func:`milp_ray.report.html.command.report`.
        notify: takes the lines.
        sleep, clock: the time, for tests.

    Raises:
        RunFolderError, StorageError: as in the report; that a driver's run has no trial yet is no
            error.
    """
    driver = _Driver(clock)
    while True:
        alive = driver.is_alive(RunFolder.open(run))
        try:
            path, data = write_report(run, out, WHILE_WATCHED)
        except RunFolderError:
            if not alive:
                raise
            notify("no trial yet")
        else:
            table = user_table(data)
            notify(f"{status_line(data, table)}: {path}")
            # Its driver has yet to write the tables where the report is made from the logs.
            over = is_complete(data, table) and not (alive and data.from_logs)
            if over or not alive:
                write_report(run, out)  # the last one has the model check
            if over:
                return
            if not alive:
                notify(f"no driver works on the run; continue it with: milp-ray resume {data.location}")
                return
        sleep(every)


def status_line(run: RunData, table: pd.DataFrame) -> str:
    """Trials and users in one line."""
    ended = run.trials.state.value_counts()
    done, failed = int(ended.get("done", 0)), int(ended.get("failed", 0))
    states = table.state.value_counts()
    told = ", ".join(f"{count:,} {state}" for state, count in states.items())
    return f"trials {done + failed:,} ({failed:,} failed); users: {told}"


class _Driver:
    """Whether a driver works on a run, by what it puts into its lease; no clocks are compared."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[str, bytes] = {}
        self._since = clock()

    def is_alive(self, folder: RunFolder) -> bool:
        """Whether there is a heartbeat that moved within the last two minutes."""
        found = {}
        for name in names_in(folder.root / LEASES):
            if name.startswith("by-"):
                try:
                    found[name] = get_file(folder.root / LEASES / name)
                except (OSError, StorageError):  # it has ended meanwhile
                    continue
        if found != self._seen:
            self._seen, self._since = found, self._clock()
        return bool(found) and self._clock() - self._since < _SILENCE
