"""The watch over workers: who counts as hung, and who never does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from milp_ray.tune.search import watchdog as watch_module
from milp_ray.tune.search.watchdog import Watchdog

PATIENCE = 10.0


class Loop:
    """Plays Tune's loop over trials ``a`` and ``b``, whose workers are their names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.ended: list[str] = []
        self.said: list[str] = []
        monkeypatch.setattr(watch_module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(watch_module.ray, "kill", self.ended.append)
        self.watch = Watchdog(PATIENCE, self.said.append)
        self.trials: list[Any] = []
        for name in "ab":
            self.trials.append(
                SimpleNamespace(trial_id=name, temporary_state=SimpleNamespace(ray_actor=name))
            )

    def turn(self, seconds: float, reports: str = "") -> None:
        """Turns of a tenth of a second; whose trials are named report at the end."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.1
            self.watch.on_step_end(0, self.trials)
        for trial in self.trials:
            if trial.trial_id in reports:
                self.watch.on_trial_result(0, self.trials, trial, {})


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop(monkeypatch)


def test_a_worker_that_is_silent_for_too_long_is_ended_and_others_are_not(loop: Loop) -> None:
    for _ in range(3):
        loop.turn(4, reports="b")
    assert loop.ended == ["a"] and "no sign of life for 10 s" in loop.said[0]
    loop.turn(6)
    assert loop.ended == ["a"], "ended once, and its process has time to go"


def test_a_trial_that_waits_for_a_worker_is_not_hung_and_has_its_time_once_it_has_one(loop: Loop) -> None:
    loop.trials[0].temporary_state.ray_actor = None
    for _ in range(20):
        loop.turn(9, reports="b")
    loop.trials[0].temporary_state.ray_actor = "a"
    loop.turn(9, reports="b")
    loop.watch.on_trial_start(0, loop.trials, loop.trials[0])
    loop.turn(9, reports="b")
    assert not loop.ended


def test_where_the_driver_slept_nobody_is_late(loop: Loop) -> None:
    for _ in range(20):
        loop.turn(5)
        loop.now += 3600.0  # stopped, or the machine's lid was closed; reports of that time are not read yet
        loop.turn(2, reports="ab")
    assert not loop.ended
    loop.turn(12)
    assert loop.ended == ["a", "b"]
