"""Ends workers that hang, which Tune would wait for as long as it lives.

A worker reports after every slice of its trial. One that was stopped, or hangs in a GPU's driver or
on a mount, reports no more; its process is killed then, and it is lost like any other
(:mod:`milp_ray.tune.workers.failures`). Not covered: a trial that has no worker yet, since it waits
for room or its worker loads the base. Loading has a bound of its own
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
    """Keeps when each worker was last heard of, by its trial.

    Its clock runs while Tune's loop turns, and a turn counts a second at most: where the driver was
    stopped, or the machine slept, the reports of that time are still to be read, and nobody is
    late.

    Args:
        timeout: seconds that a worker may be silent.
        notify: is told of every worker that is ended.
    """

    def __init__(self, timeout: float, notify: Callable[[str], object]) -> None:
        self._timeout = timeout
        self._notify = notify
        self._clock = 0.0
        self._turned = time.monotonic()
        self._next = 0.0
        self._heard: dict[str, float] = {}

    def on_step_end(self, iteration: int, trials: Sequence[Trial], **info: object) -> None:
        """Look, twice a second."""
        now = time.monotonic()
        self._clock += min(now - self._turned, _LONGEST_TURN)
        self._turned = now
        if self._clock < self._next:
            return
        self._next = self._clock + _LOOK_SECONDS
        # Tune's own note of who works on a trial; it is set before a worker that is kept takes the
        # trial, and no hook would tell if that one hung.
        workers = {t.trial_id: (t, actor) for t in trials if (actor := t.temporary_state.ray_actor)}
        self._heard = {name: self._heard.get(name, self._clock) for name in workers}
        for name, (trial, actor) in workers.items():
            if self._clock - self._heard[name] > self._timeout:
                self._heard[name] = self._clock
                self._notify(
                    f"{trial}: its worker gave no sign of life for {self._timeout:.0f} s "
                    "(ray.group_timeout and a slice) and is ended"
                )
                # A process that does not answer is ended by Ray on its node, with SIGKILL, 5 s
                # later.
                ray.kill(actor)

    def on_trial_start(self, iteration: int, trials: Sequence[Trial], trial: Trial, **info: object) -> None:
        """Its worker has taken it."""
        self._heard[trial.trial_id] = self._clock

    def on_trial_result(
        self,
        iteration: int,
        trials: Sequence[Trial],
        trial: Trial,
        result: Mapping[str, object],
        **info: object,
    ) -> None:
        """A sign of life."""
        self._heard[trial.trial_id] = self._clock

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune pickles it with its Tuner, which nobody reads
