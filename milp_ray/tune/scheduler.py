"""The Ray Tune scheduler of a study: it keeps actors, and stops trials when the run is asked to stop.

It does not compare trials: that is the search's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler


class KeepActors(FIFOScheduler):  # type: ignore[misc]
    """Trials in the order they were suggested, on whatever cached actor is free.

    Tune's default scheduler names a trial to run, and Tune then gives that trial a cached actor and kills the
    actor that was starting for it: reuse collapses. Naming none leaves every actor to the trial it holds.
    """

    def __init__(self, stopping: Callable[[], bool]) -> None:
        super().__init__()
        self._stopping = stopping

    def choose_trial_to_run(self, tune_controller: TuneController, **_: object) -> Trial | None:
        """No preference."""
        return None

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: Mapping[str, object]
    ) -> str:
        """STOP once the run was asked to stop, so that a long trial ends between two slices."""
        if self._stopping() and not result.get("finished"):
            return TrialScheduler.STOP  # type: ignore[no-any-return]
        return TrialScheduler.CONTINUE  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, object]:
        return {}
