"""Live progress of a run: a panel on a terminal, a line every few seconds anywhere else.

Shown: users done, trials done and failed, best values, time left. Never a raw id or text: aliases
    only.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from milp_ray.trial.records import BASELINE, TrialCost, TrialRequest
from milp_ray.tune.search.prometheus import StudyCounts

if TYPE_CHECKING:
    from milp_ray.config.objectives import Objective
    from milp_ray.search import Engine
    from milp_ray.study.population import Summary

_LINE_SECONDS = 5.0
_SHOWN_USERS = 8


@dataclass
class UserProgress:
    """What is known of a user's search. ``trials``: how many it comes to, at most its budget."""

    trials: int = 0
    done: int = 0
    failed: int = 0
    running: int = 0
    best: dict[str, float] = field(default_factory=dict)
    no_memory: dict[str, float] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether all its trials have ended."""
        return self.done + self.failed >= self.trials


class StudyProgress:
    """Counts what happens and shows it. Thread-safe; a context manager.

    Args:
        console: where to show; a panel if it is a terminal, else plain lines.
        aliases: the users.
        trials: budget per user.
        objectives: of the study.
        unit: what is searched: user or population.
    """

    def __init__(
        self,
        console: Console,
        aliases: list[str],
        trials: int,
        objectives: Sequence[Objective],
        unit: str = "user",
    ) -> None:
        self._console = console
        self._unit = unit
        self._objectives = {objective.name: objective for objective in objectives}
        self._users = {alias: UserProgress(trials) for alias in aliases}
        self._engines: Mapping[str, Engine] = {}
        # Kept up to date event by event: a scan of all users per trial is what large studies cannot
        # afford.
        self._totals = UserProgress(trials * len(aliases))
        self._full = self._trained = 0
        self._recent: dict[str, None] = {}  # users at work or lately so, in the order of their last event
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

    def notify(self, text: str) -> None:
        """A line that stays. A terminal that has gone away is no reason to lose a study."""
        with contextlib.suppress(OSError):
            self._console.print(Text(text))

    def replayed(self, alias: str, found: Summary) -> None:
        """What an earlier session of the same run found."""
        with self._lock:
            self._count(alias, done=found.done, failed=found.failed)
            if found.over:
                self._limit(alias, found.done + found.failed)
            self.observed(alias, 0, found.best)
            if found.reference is not None:
                self.observed(alias, BASELINE, found.reference)

    @contextlib.contextmanager
    def watching(self, engines: Mapping[str, Engine]) -> Iterator[None]:
        """For the length of a Tune run: whose searches may end before their budgets."""
        self._engines = engines
        try:
            yield
        finally:
            with self._lock:
                for alias in engines:
                    self._limit_if_finished(alias)
                self._engines = {}

    def observed(self, alias: str, number: int, values: Mapping[str, float]) -> None:
        """Values of a trial, or of the no-memory measurement."""
        with self._lock:
            user = self._users[alias]
            if number == BASELINE:
                user.no_memory = dict(values)
                return
            for name, value in values.items():
                for kept in (user.best, self._totals.best):
                    kept[name] = self._objectives[name].best((kept.get(name, value), value))

    def on_trial_started(self, request: TrialRequest) -> None:
        """A trial went to a worker."""
        with self._lock:
            self._users[request.alias].running += 1
            self._touch(request.alias)

    def on_trial_requeued(self, request: TrialRequest, is_charged: bool) -> None:
        """A trial's worker is gone; the trial runs again. The search tells a worker's own fault."""
        with self._lock:
            self._left_worker(request.alias)
            if is_charged:
                self.notify(f"{request.alias} {_name_of(request)}: its worker was lost; it runs again")

    def on_trial_completed(
        self, request: TrialRequest, values: Mapping[str, float], cost: TrialCost | None
    ) -> None:
        """A trial was measured."""
        with self._lock:
            self._left_worker(request.alias)
            self.observed(request.alias, request.number, values)
            self._ended(request, done=1)
            self._line()

    def on_trial_failed(self, request: TrialRequest, reason: str, cost: TrialCost | None) -> None:
        """A trial failed."""
        with self._lock:
            self._left_worker(request.alias)
            self._ended(request, failed=1)
            self.notify(f"{request.alias} {_name_of(request)} failed: {reason}")
            self._line()

    def _left_worker(self, alias: str) -> None:
        user = self._users[alias]
        user.running = max(0, user.running - 1)
        self._touch(alias)

    def _ended(self, request: TrialRequest, done: int = 0, failed: int = 0) -> None:
        self._limit_if_finished(request.alias)
        if not request.is_baseline:
            self._ended_now += 1
            self._count(request.alias, done=done, failed=failed)

    def trained(self, users: int) -> None:
        """How many users have a memory."""
        with self._lock:
            self._trained = users

    def final_step(self, step: str, done: int, total: int) -> None:
        """Progress of the final stage; ``step`` is train or test."""
        with self._lock:
            names = {"train": "memories trained", "test": "users tested"}
            if step == "train":
                self.trained(done)
            if self._live is None:
                self.notify(f"final: {names[step]} {done}/{total}")
                return
            if step not in self._tasks:
                self._tasks[step] = self._bar.add_task(names[step], total=total, note="")
            self._bar.update(self._tasks[step], completed=done)

    def counts(self) -> StudyCounts:
        """Trials and users by state; a user counts in the furthest one that it has reached."""
        with self._lock:
            searching = running = 0
            for user in self._users.values():
                running += user.running
                started = user.running or user.done or user.failed
                searching += bool(started and not user.full)
            trained = min(self._trained, self._full)
            return StudyCounts(
                {"running": running, "done": self._totals.done, "failed": self._totals.failed},
                {
                    "waiting": len(self._users) - searching - self._full,
                    "searching": searching,
                    "searched": self._full - trained,
                    "trained": trained,
                },
            )

    def totals(self) -> tuple[int, int, int]:
        """(users whose search is over, trials done, trials failed)."""
        with self._lock:
            return self._full, self._totals.done, self._totals.failed

    def _count(self, alias: str, *, done: int = 0, failed: int = 0, trials: int = 0) -> None:
        """Add to a user's numbers, and to the totals."""
        user = self._users[alias]
        was_full = user.full
        for kept in (user, self._totals):
            kept.done += done
            kept.failed += failed
            kept.trials += trials
        self._full += int(user.full) - int(was_full)

    def _limit(self, alias: str, trials: int) -> None:
        self._count(alias, trials=trials - self._users[alias].trials)

    def _limit_if_finished(self, alias: str) -> None:
        """Take note if an engine will propose nothing more."""
        engine = self._engines.get(alias)
        if engine is not None and engine.finished:
            self._limit(alias, engine.counts.asked)

    def _touch(self, alias: str) -> None:
        """The newest event is this user's; the user longest idle is forgotten."""
        self._recent.pop(alias, None)
        self._recent[alias] = None
        if len(self._recent) > 4 * _SHOWN_USERS:
            idle = next((other for other in self._recent if not self._users[other].running), None)
            if idle is not None:
                del self._recent[idle]

    def _eta(self) -> str:
        _, done, failed = self.totals()
        left = self._totals.trials - done - failed
        if self._ended_now < 2 or left <= 0:
            return ""
        seconds = int(left * (time.monotonic() - self._began) / self._ended_now)
        return f"ETA {seconds // 60}m{seconds % 60:02d}s"

    def _line(self) -> None:
        users, done, failed = self.totals()
        total = self._totals.trials
        now = time.monotonic()
        if self._live is not None or (now - self._last_line < _LINE_SECONDS and done + failed < total):
            return
        self._last_line = now
        best = "  ".join(f"{name} {_shown(value)}" for name, value in self._totals.best.items())
        parts = [
            f"search: trials {done + failed}/{total} ({failed} failed)",
            f"{self._unit}s done {users}/{len(self._users)}",
            f"best {best}" if best else "",
            self._eta(),
        ]
        self.notify("  ".join(part for part in parts if part))

    def _panel(self) -> Group:
        with self._lock:
            users, done, failed = self.totals()
            total = self._totals.trials
            if "search" not in self._tasks:
                self._tasks["search"] = self._bar.add_task("trials", total=total, note="")
            note = f"{failed} failed  {self._unit}s {users}/{len(self._users)}  {self._eta()}"
            self._bar.update(self._tasks["search"], completed=done + failed, total=total, note=note)
            return Group(self._table(), self._bar)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for column in (self._unit, "trials", "running"):
            table.add_column(column, justify="left" if column == self._unit else "right", no_wrap=True)
        for name, objective in self._objectives.items():
            best = "lowest" if objective.direction == "min" else "highest"
            table.add_column(f"{best} {name}", justify="right")
            table.add_column("no memory", justify="right", style="dim")
        # Who is at work is what one wants to see; the rest fits no screen at a thousand users.
        for alias, user in self._shown_users():
            cells = [alias, f"{user.done + user.failed}/{user.trials}", str(user.running or "")]
            for name in self._objectives:
                both = (user.best, user.no_memory)
                cells.extend(_shown(values[name]) if name in values else "" for values in both)
            table.add_row(*cells)
        if len(self._users) > _SHOWN_USERS:
            table.add_row(f"… {len(self._users) - _SHOWN_USERS} more")
        return table

    def _shown_users(self) -> list[tuple[str, UserProgress]]:
        """Who has most trials running, then who had the last event, then the data's first."""
        known = dict.fromkeys(reversed(self._recent))
        known.update(dict.fromkeys(islice(self._users, _SHOWN_USERS)))
        order = sorted(known, key=lambda alias: -self._users[alias].running)
        return [(alias, self._users[alias]) for alias in order[:_SHOWN_USERS]]


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def _name_of(request: TrialRequest) -> str:
    return "no-memory measurement" if request.number == BASELINE else f"trial {request.number}"
