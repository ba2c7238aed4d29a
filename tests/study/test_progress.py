"""The progress display's counters, which are kept event by event."""

from __future__ import annotations

import io
import random

from rich.console import Console

from milp_ray.memory.placement import Placement
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Engine, Objective
from milp_ray.search.core.records import ProposalCounts
from milp_ray.study.population import Summary
from milp_ray.study.progress import StudyProgress
from milp_ray.trial.records import BASELINE, TrialRequest

TRIALS = 4


def progress_of(users: int) -> tuple[StudyProgress, io.StringIO]:
    text = io.StringIO()
    aliases = [f"u{number}" for number in range(users)]
    objectives = [Objective("loss", "min"), Objective("rouge_l", "max")]
    return StudyProgress(Console(file=text, width=200), aliases, TRIALS, objectives), text


def test_totals_are_those_of_a_scan() -> None:
    progress, text = progress_of(5)
    rng = random.Random(0)
    no_memory = {"loss": 2.6, "rouge_l": 0.1}
    progress.replayed("u0", Summary(3, 1, True, no_memory, {"loss": 2.0, "rouge_l": 0.2}))
    progress.replayed("u1", Summary(1, 0, False, None, {"loss": 2.5, "rouge_l": 0.3}))
    ended = {"u0": [3, 1], "u1": [1, 0], "u2": [0, 0], "u3": [0, 0], "u4": [0, 0]}
    assert progress.totals() == (1, 4, 1)
    jobs = [
        (alias, number) for alias, (done, _) in ended.items() if alias != "u0" for number in range(done, 4)
    ]
    rng.shuffle(jobs)
    for alias, number in [*jobs, ("u3", BASELINE)]:
        request = TrialRequest(alias, number, Placement(((0, 8),)), "x")
        progress.on_trial_started(request)
        fails = number != BASELINE and rng.random() < 0.3
        if fails:
            progress.on_trial_failed(request, "why", None)
        else:
            progress.on_trial_completed(request, {"loss": 1.0 + number, "rouge_l": 0.4}, None)
        if number != BASELINE:
            ended[alias][fails] += 1
        full = sum(sum(counts) >= TRIALS for counts in ended.values())
        assert progress.totals() == (full, *(sum(column) for column in zip(*ended.values(), strict=True)))
    assert progress.totals()[0] == 5
    progress.trained(2)
    counts = progress.counts()
    assert counts.users == {"waiting": 0, "searching": 0, "searched": 3, "trained": 2}
    assert counts.trials == {"running": 0, "done": progress.totals()[1], "failed": progress.totals()[2]}
    assert "trials 20/20" in text.getvalue() and "users done 5/5" in text.getvalue()


def test_a_population_is_called_what_it_is() -> None:
    text = io.StringIO()
    objectives = [Objective("loss", "min")]
    progress = StudyProgress(Console(file=text, width=200), ["population"], 1, objectives, unit="population")
    request = TrialRequest("population", 0, Placement(((0, 8),)), "x")
    progress.on_trial_started(request)
    progress.on_trial_completed(request, {"loss": 1.0}, None)
    assert "trials 1/1" in text.getvalue() and "populations done 1/1" in text.getvalue()
    assert "user" not in text.getvalue()


def test_the_table_shows_who_is_at_work_and_grows_with_no_population() -> None:
    progress, _ = progress_of(1000)
    for number in range(900):
        request = TrialRequest(f"u{number}", 0, Placement(((0, 8),)), "x")
        progress.on_trial_started(request)
        if number != 5:
            progress.on_trial_completed(request, {"loss": 2.0, "rouge_l": 0.1}, None)
    shown = [alias for alias, _ in progress._shown_users()]
    assert shown[:2] == ["u5", "u899"] and len(shown) == 8
    assert len(progress._recent) < 50
    counts = progress.counts()
    assert counts.users == {"waiting": 100, "searching": 900, "searched": 0, "trained": 0}
    assert counts.trials["running"] == 1


def test_a_user_whose_space_is_used_up_is_done() -> None:
    progress, text = progress_of(3)
    engine = Engine(
        MemorySpace(num_layers=1, max_loras=1, ranks=(4, 8, 16)),
        (Objective("loss", "min"), Objective("rouge_l", "max")),
        surrogate="random",
        trials=TRIALS,
    )
    values = {"loss": 2.0, "rouge_l": 0.1}
    with progress.watching({"u0": engine}):
        proposals = engine.ask(TRIALS)
        assert len(proposals) == 3 < TRIALS
        for number, proposal in enumerate(proposals):
            assert progress.totals() == (0, number, 0)
            assert progress.counts().users["searching"] == min(1, number)
            request = TrialRequest("u0", proposal.id, proposal.placement, "x")
            progress.on_trial_started(request)
            engine.tell(proposal.id, values)
            progress.on_trial_completed(request, values, None)
    assert progress.counts().users == {"waiting": 2, "searching": 0, "searched": 1, "trained": 0}
    progress.replayed("u1", Summary(1, 1, True, None, values))  # as in an earlier session
    progress.trained(2)
    assert progress.totals() == (2, 4, 1)
    assert progress.counts().users == {"waiting": 1, "searching": 0, "searched": 0, "trained": 2}
    progress.on_trial_completed(TrialRequest("u2", 0, Placement(((0, 8),)), "x"), values, None)
    progress._last_line = -1e9
    progress._line()
    assert "trials 6/9 (1 failed)  users done 2/3" in text.getvalue()


def test_that_a_space_is_used_up_is_noticed_at_the_latest_when_the_cohort_is_over() -> None:
    class Spent:
        finished = ""
        counts = ProposalCounts(2, 0, 2, 0)

    progress, _ = progress_of(1)
    engine = Spent()
    with progress.watching({"u0": engine}):  # type: ignore[dict-item]
        for number in range(2):
            progress.on_trial_completed(
                TrialRequest("u0", number, Placement(((0, 8),)), "x"), {"loss": 2.0}, None
            )
        assert progress.totals() == (0, 2, 0)
        engine.finished = "no placement is left that was not tried"
    assert progress.totals() == (1, 2, 0)
