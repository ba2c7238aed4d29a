"""Live progress of a run: a panel on a terminal, a line every few seconds anywhere else.

Shown: users done, trials done and failed, best values, time left. Never a raw id or text: aliases only.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from milp_ray.tune.queue import BASELINE, Ticket

_LINE_SECONDS = 5.0
_SHOWN_USERS = 8


@dataclass
class UserProgress:
    """What is known of one user's search."""

    done: int = 0
    failed: int = 0
    running: int = 0
    best: dict[str, float] = field(default_factory=dict)
    no_memory: dict[str, float] = field(default_factory=dict)


class StudyProgress:
    """Counts what happens and shows it. Thread-safe; a context manager.

    Args:
        console: where to show; a panel if it is a terminal, else plain lines.
        aliases: the users.
        trials: budget per user.
        directions: objective -> "min" or "max".
    """

    def __init__(
        self, console: Console, aliases: list[str], trials: int, directions: Mapping[str, str]
    ) -> None:
        self._console = console
        self._trials = trials
        self._directions = dict(directions)
        self._users = {alias: UserProgress() for alias in aliases}
        self._lock = threading.RLock()
        self._ended_now = 0
        self._began = time.monotonic()
        self._last_line = 0.0
        self._live: Live | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> StudyProgress:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._panel, console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """A line that stays. A terminal that has gone away is no reason to lose a study."""
        with contextlib.suppress(OSError):
            self._console.print(Text(text))

    def replayed(self, alias: str, done: int, failed: int) -> None:
        """Trials that an earlier run of the same folder finished."""
        with self._lock:
            user = self._users[alias]
            user.done, user.failed = done, failed

    def observed(self, alias: str, number: int, values: Mapping[str, float]) -> None:
        """Values of a trial, or of the no-memory measurement."""
        with self._lock:
            user = self._users[alias]
            if number == BASELINE:
                user.no_memory = dict(values)
                return
            for name, value in values.items():
                better = min if self._directions[name] == "min" else max
                user.best[name] = better(user.best.get(name, value), value)

    def trial_started(self, ticket: Ticket) -> None:
        """A trial went to a worker."""
        with self._lock:
            self._users[ticket.alias].running += 1

    def trial_ended(self, ticket: Ticket, values: Mapping[str, float] | None, reason: str) -> None:
        """A trial was told or failed."""
        with self._lock:
            user = self._users[ticket.alias]
            user.running = max(0, user.running - 1)
            if values is not None:
                self.observed(ticket.alias, ticket.number, values)
            if ticket.number != BASELINE:
                self._ended_now += 1
                if values is None:
                    user.failed += 1
                else:
                    user.done += 1
            if values is None:
                name = "no-memory measurement" if ticket.number == BASELINE else f"trial {ticket.number}"
                self.say(f"{ticket.alias} {name} failed: {reason}")
            self._line()

    def final_step(self, step: str, done: int, total: int) -> None:
        """Progress of the final stage; ``step`` is train or test."""
        with self._lock:
            names = {"train": "memories trained", "test": "users tested"}
            if self._live is None:
                self.say(f"final: {names[step]} {done}/{total}")
                return
            if step not in self._tasks:
                self._tasks[step] = self._bar.add_task(names[step], total=total, note="")
            self._bar.update(self._tasks[step], completed=done)

    def totals(self) -> tuple[int, int, int]:
        """(users whose budget is used up, trials done, trials failed)."""
        with self._lock:
            users = list(self._users.values())
            full = sum(user.done + user.failed >= self._trials for user in users)
            return full, sum(user.done for user in users), sum(user.failed for user in users)

    def _eta(self) -> str:
        _, done, failed = self.totals()
        left = self._trials * len(self._users) - done - failed
        if self._ended_now < 2 or left <= 0:
            return ""
        seconds = int(left * (time.monotonic() - self._began) / self._ended_now)
        return f"ETA {seconds // 60}m{seconds % 60:02d}s"

    def _line(self) -> None:
        users, done, failed = self.totals()
        total = self._trials * len(self._users)
        now = time.monotonic()
        if self._live is not None or (now - self._last_line < _LINE_SECONDS and done + failed < total):
            return
        self._last_line = now
        best = "  ".join(f"{name} {_shown(value)}" for name, value in self._overall().items())
        parts = [
            f"search: trials {done + failed}/{total} ({failed} failed)",
            f"users done {users}/{len(self._users)}",
            f"best {best}" if best else "",
            self._eta(),
        ]
        self.say("  ".join(part for part in parts if part))

    def _overall(self) -> dict[str, float]:
        out = {}
        for name, direction in self._directions.items():
            values = [user.best[name] for user in self._users.values() if name in user.best]
            if values:
                out[name] = min(values) if direction == "min" else max(values)
        return out

    def _panel(self) -> Group:
        with self._lock:
            users, done, failed = self.totals()
            total = self._trials * len(self._users)
            if "search" not in self._tasks:
                self._tasks["search"] = self._bar.add_task("trials", total=total, note="")
            note = f"{failed} failed  users {users}/{len(self._users)}  {self._eta()}"
            self._bar.update(self._tasks["search"], completed=done + failed, note=note)
            return Group(self._table(), self._bar)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for column in ("user", "trials", "running"):
            table.add_column(column, justify="left" if column == "user" else "right", no_wrap=True)
        for name, direction in self._directions.items():
            table.add_column(f"{'lowest' if direction == 'min' else 'highest'} {name}", justify="right")
            table.add_column("no memory", justify="right", style="dim")
        # Who is at work is what one wants to see; the rest fits no screen at a thousand users.
        order = sorted(self._users.items(), key=lambda item: (-item[1].running, -item[1].done))
        for alias, user in order[:_SHOWN_USERS]:
            cells = [alias, f"{user.done + user.failed}/{self._trials}", str(user.running or "")]
            for name in self._directions:
                both = (user.best, user.no_memory)
                cells.extend(_shown(values[name]) if name in values else "" for values in both)
            table.add_row(*cells)
        if len(order) > _SHOWN_USERS:
            table.add_row(f"… {len(order) - _SHOWN_USERS} more")
        return table


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
