"""The Ray Tune Searcher of a study: an adapter (docs/decisions.md, 1).

A trial's config has alias and numbers only: Tune writes it verbatim to files and the dashboard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ray.tune.search import Searcher

from milp_ray.trial.records import TrialReport, TrialRequest
from milp_ray.tune.search.ledger import TrialLedger

# Where `suggest` has nothing and no trial runs, Tune would sleep a second and end cached actors.
_IDLE_WAIT_SECONDS = 0.5


class StudySearcher(Searcher):  # type: ignore[misc]
    """Hands the trials of a ``ledger`` to Tune, until ``stop_requested()``.

    An outcome counts once, even if Tune repeats it.
    """

    def __init__(self, ledger: TrialLedger, stop_requested: Callable[[], bool]) -> None:
        super().__init__(metric=list(ledger.objectives), mode=["min"] * len(ledger.objectives))
        self._ledger, self._stop_requested = ledger, stop_requested
        self._requests: dict[str, TrialRequest] = {}  # of running trials, by Tune's id

    def suggest(self, trial_id: str) -> dict[str, object] | str | None:
        """The next trial's config, None while none is ready, FINISHED when none will be."""
        if self._stop_requested() or self._ledger.error:
            return Searcher.FINISHED  # type: ignore[no-any-return]
        request = None
        with self._errors_kept():
            request = self._ledger.start(wait=_IDLE_WAIT_SECONDS)
        if request is None:
            return Searcher.FINISHED if self._ledger.is_over else None
        self._requests[trial_id] = request
        return request.to_config()

    def on_trial_result(self, trial_id: str, result: Mapping[str, object]) -> None:
        """A worker reports during its trial."""
        if request := self._requests.get(trial_id):
            with self._errors_kept():
                self._ledger.report(request, TrialReport.from_result(result))

    def note_last_words(self, trial_id: str, last_words: str) -> None:
        """Note a lost worker's last words; Tune tells of the loss itself next."""
        if request := self._requests.get(trial_id):
            self._ledger.note_last_words(request, last_words)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False
    ) -> None:
        """A trial ended, was stopped, or lost its worker."""
        if (request := self._requests.pop(trial_id, None)) is None:
            return
        with self._errors_kept():
            if error or result is None:
                self._ledger.lose(request)
            else:
                self._ledger.end(request, TrialReport.from_result(result))

    @contextmanager
    def _errors_kept(self) -> Iterator[None]:
        """End the run on an error, since Tune itself logs what is raised here and goes on."""
        try:
            yield
        except Exception as error:
            self._ledger.give_up(error)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the event logs are the state (docs/decisions.md, 4)."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a resumed run replays the event logs."""

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune pickles its searcher into snapshots that nobody reads
