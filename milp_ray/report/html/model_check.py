"""What the surrogate is asked about some searches of a run, within a limit of time.

Each search is fitted anew from its event log, as its next proposal would be
(:mod:`milp_ray.search.diagnostics`); nothing of the run is changed. What the answers come to is
:mod:`milp_ray.report.html.model_section`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from milp_ray.errors import MilpRayError
from milp_ray.report.html.figures import evenly
from milp_ray.report.html.run_data import RunData
from milp_ray.search.core.events import events_so_far
from milp_ray.search.diagnostics import FEWEST, Diagnosis, diagnose, plan_of
from milp_ray.search.replay import search_of
from milp_ray.study.run_folder import RunFolder

MOST_CHECKED = 8
SECONDS = 60.0


@dataclass(frozen=True)
class ModelCheck:
    """Answers of the surrogate.

    Attributes:
        found: by alias, the best user first.
        wanted: how many searches were to be asked about.
        seconds: that it took.
        left_out: why nothing was asked; empty where something was.
    """

    found: Mapping[str, Diagnosis] = field(default_factory=dict)
    wanted: int = 0
    seconds: float = 0.0
    left_out: str = ""


NOT_MADE = ModelCheck(left_out="No model was fitted for this report: it was made with --no-model-check.")
WHILE_WATCHED = ModelCheck(left_out="No model is fitted while the run goes on: the last report has it.")


def check_models(
    folder: RunFolder,
    run: RunData,
    drawn: Sequence[str],
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> ModelCheck:
    """Ask about some of the drawn users' searches, spread from the best to the worst.

    Args:
        folder, run: where the event logs are, and what was read of it.
        drawn: users that are drawn in full, the best first.
        seconds: no further search is begun after so many.
        clock: for tests.
    """
    began = clock()
    measured = run.trials[run.trials.state == "done"].user.value_counts()
    able = [alias for alias in drawn if measured.get(alias, 0) >= FEWEST]
    if not able:
        return ModelCheck(left_out=f"No drawn search has {FEWEST} measured trials yet: nothing was fitted.")
    picked = [able[index] for index in evenly(len(able), MOST_CHECKED)]
    found: dict[str, Diagnosis] = {}
    for alias in picked:
        if clock() - began >= seconds:
            break
        diagnosis = _diagnosis(folder, alias)
        if diagnosis is not None:
            found[alias] = diagnosis
    reason = "" if found else "The surrogate could be fitted to none of the drawn searches."
    return ModelCheck(found, len(picked), clock() - began, reason)


def _diagnosis(folder: RunFolder, alias: str) -> Diagnosis | None:
    search, log = folder.study.search, folder.layout.events(alias)
    options = search.saas.model_dump() if search.surrogate == "saas" else {}
    try:
        view = search_of(events_so_far(log), log)
        if view is None:
            return None
        plan = plan_of(view, search.surrogate, options, search.outcome, folder.study.seed)
        return diagnose(plan, [seen.id for seen in view.observations])
    except MilpRayError:  # a damaged log: the section on health names it
        return None
