"""The Ray Tune scheduler of a study: it keeps actors, and stops trials when the run is to stop.

It does not compare trials; the search does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from milp_ray.tune.workers.last_words import last_words_of


class KeepActors(FIFOScheduler):  # type: ignore[misc]
    """Runs trials in the order they were suggested, on whatever cached actor is free.

    Tune's default scheduler names a trial to run. Tune then gives that trial a cached actor, and
    kills the actor that was starting for it, so hardly any actor is reused. This scheduler names no
    trial, and every actor keeps its own.

    Args:
        stop_requested: whether the run was asked to stop.
        lost: is told the id of a trial whose worker was lost, and the worker's last words.
    """

    def __init__(
        self,
        stop_requested: Callable[[], bool],
        lost: Callable[[str, str], object] = lambda trial_id, words: None,
    ) -> None:
        super().__init__()
        self._stop_requested = stop_requested
        self._lost = lost

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Tell a lost worker's last words, before Tune tells the searcher of the loss."""
        self._lost(trial.trial_id, last_words_of(trial))

    def choose_trial_to_run(self, tune_controller: TuneController, **_: object) -> Trial | None:
        """Prefer no trial."""
        return None

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: Mapping[str, object]
    ) -> str:
        """STOP once the run was asked to stop, so that a long trial ends between two slices."""
        if self._stop_requested() and not result.get("done"):
            return TrialScheduler.STOP  # type: ignore[no-any-return]
        return TrialScheduler.CONTINUE  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, object]:
        return {}
