"""The watchdog kills workers that hang, which Tune would wait for as long as it lives.

A worker reports after every slice of its trial. A worker that was stopped, or hangs in a GPU's
driver or on a mount, reports no more. Then its process is killed, and it is lost like any other
(:mod:`milp_ray.tune.workers.failures`). The watchdog does not cover a trial without a worker: it
waits for resources, or its worker loads the base. Loading has a time limit of its own
(:mod:`milp_ray.tune.workers.resident`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import ray
from ray import tune
from ray.tune.experiment import Trial

_LONGEST_TURN = 1.0
_LOOK_SECONDS = 0.5


class Watchdog(tune.Callback):  # type: ignore[misc]
    """Keeps when each trial's worker last gave a sign of life.

    Its clock runs while Tune's loop turns, and a turn counts a second at most. So no worker is late
    because the driver was stopped, or the machine slept: the reports of that time are still to be
    read.

    Args:
        timeout: seconds that a worker may be silent.
        notify: is told of every worker that is killed.
    """

    def __init__(self, timeout: float, notify: Callable[[str], object]) -> None:
        self._timeout = timeout
        self._notify = notify
        self._clock = 0.0
        self._turned = time.monotonic()
        self._next = 0.0
        self._heard: dict[str, float] = {}

    def on_step_end(self, iteration: int, trials: Sequence[Trial], **info: object) -> None:
        """Look for silent workers, twice a second."""
        now = time.monotonic()
        self._clock += min(now - self._turned, _LONGEST_TURN)
        self._turned = now
        if self._clock < self._next:
            return
        self._next = self._clock + _LOOK_SECONDS
        # Tune's own note of a trial's actor. It is set before a kept actor takes the trial: if the
        # actor hung there, no hook would tell.
        workers = {t.trial_id: (t, actor) for t in trials if (actor := t.temporary_state.ray_actor)}
        self._heard = {name: self._heard.get(name, self._clock) for name in workers}
        for name, (trial, actor) in workers.items():
            if self._clock - self._heard[name] > self._timeout:
                self._heard[name] = self._clock
                self._notify(
                    f"{trial}: its worker gave no sign of life for {self._timeout:.0f} s "
                    "(ray.group_timeout and a slice) and is ended"
                )
                # Ray kills a process that does not answer on its node, with SIGKILL, 5 s later.
                ray.kill(actor)

    def on_trial_start(self, iteration: int, trials: Sequence[Trial], trial: Trial, **info: object) -> None:
        """A trial's worker has taken it."""
        self._heard[trial.trial_id] = self._clock

    def on_trial_result(
        self,
        iteration: int,
        trials: Sequence[Trial],
        trial: Trial,
        result: Mapping[str, object],
        **info: object,
    ) -> None:
        """A trial's worker gave a sign of life."""
        self._heard[trial.trial_id] = self._clock

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune pickles it with its Tuner, which nobody reads
