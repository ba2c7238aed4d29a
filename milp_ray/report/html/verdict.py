"""What a run came to, in a few numbers, each with how it is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from milp_ray.config.objectives import OBJECTIVES
from milp_ray.evaluation.intervals import Interval, mean_interval, median_interval
from milp_ray.ids import POPULATION
from milp_ray.memory.placement import Placement
from milp_ray.report.html.model_check import ModelCheck
from milp_ray.report.html.model_section import expected_gain
from milp_ray.report.html.run_data import STAGES, RunData
from milp_ray.report.html.worker_timeline import held_hours, timeline_of
from milp_ray.serving.engines import VLLM_RANKS

_RESAMPLES = 1_999
_FEWEST_TRIALS = 8  # whose last quarter is two trials
_LITTLE = 0.01  # of the hypervolume, gained in the last quarter of the trials


@dataclass(frozen=True)
class Fact:
    """A line of the verdict: what, its value in words, and how it is computed."""

    label: str
    value: str
    how: str


def verdict(run: RunData, table: pd.DataFrame, check: ModelCheck | None = None) -> list[Fact]:
    """The lines, in order; what cannot be said yet says so."""
    return [
        _users(run, table),
        _beaten(table.gain, "Memory beats no memory", "the base's", run),
        _beaten(table.gain_other, "Memory beats another user's", "another user's memory's", run),
        _median(table.gain, run),
        _validation(run, table),
        _hours(run),
        _rank(run),
        more_trials(run, check or ModelCheck()),
    ]


def more_trials(run: RunData, check: ModelCheck) -> Fact:
    """Whether more trials would pay: the hypervolume's slope, and what the acquisition expects."""
    growths = last_quarter(
        {str(user): list(rows.hypervolume) for user, rows in run.hypervolume.groupby("user")}
    )
    how = (
        "Slope: hypervolume of each search (from a point below its whole front) after its last trial, less "
        "that after three quarters of its trials, as a share of the former; searches of fewer than "
        f"{_FEWEST_TRIALS} measured trials do not count. Below {_percent(_LITTLE)} in the median, little is "
        "left. Growth slows down: as many trials more would bring the same again at most. Expectation: what "
        "the acquisition expects of the best next trial of some searches (Model check), on the model's "
        f"scale, times as many trials; little is below {_percent(_LITTLE)}, too."
    )
    label = "Would more trials pay?"
    if not growths:
        return Fact(label, "Too few measured trials to say.", how)
    shares = pd.Series([growth for growth, _ in growths.values()])
    trials = int(pd.Series([count for _, count in growths.values()]).median())
    middle, growing = float(shares.median()), int((shares > _LITTLE).sum())
    early = 3 * trials < run.study.search.initial
    led = "; space-filling initial trials are among these" if early else ""
    seen = (
        f"the last {trials} trials brought {_percent(middle)} of the hypervolume in the median search{led}, "
        f"and {growing:,} of {len(shares):,} still grew by more than {_percent(_LITTLE)}"
    )
    gain = expected_gain(check)
    slope = middle >= _LITTLE
    expects = slope if gain is None else gain[0] * trials >= _LITTLE
    more = (
        ""
        if gain is None
        else f"; of the next one the acquisition expects {_percent(gain[0])} (median of {gain[1]} searches)"
    )
    answer = "Probably yes" if slope and expects else "Hard to say"
    if not slope and not expects:
        answer = "Hardly, little is left"
    return Fact(label, f"{answer}: {seen}{more}.", how)


def last_quarter(curves: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, int]]:
    """Of each search the share of its hypervolume that the last quarter brought, and its trials."""
    result = {}
    for alias, curve in curves.items():
        if len(curve) >= _FEWEST_TRIALS and curve[-1] > 0:
            quarter = len(curve) // 4
            result[alias] = ((curve[-1] - curve[-1 - quarter]) / curve[-1], quarter)
    return result


def worker_hours(run: RunData) -> float:
    """Hours that workers were at trials, each rank counted."""
    seconds = run.trials[list(STAGES)].sum(axis=1, min_count=1).sum()
    return float(seconds) * run.study.ray.workers_per_trial / 3600


def largest_rank(run: RunData) -> int:
    """The largest effective rank of a chosen placement; 0 without any."""
    ranks = (rank for key in run.chosen.placement for _, rank in Placement.from_key(str(key)).ranks)
    return max(ranks, default=0)


def _users(run: RunData, table: pd.DataFrame) -> Fact:
    rows = table.drop(index=POPULATION, errors="ignore") if len(table) > 1 else table
    states = rows.state.value_counts()
    tested, searched = int(states.get("tested", 0)), int(states.get("searched", 0))
    failed = int(states.get("failed", 0) + states.get("not tested", 0))
    done = "tested" if tested else "searched"
    parts = [f"{(tested or searched):,} {done}", f"{failed:,} failed"]
    if tested and searched:
        parts.insert(1, f"{searched:,} searched and not tested yet")
    parts += [f"{int(states[s]):,} {s}" for s in ("searching", "waiting") if states.get(s, 0)]
    how = (
        "Done: the memory was tested, or in a run without tests (simulated, or final.automatic off) the "
        "search is over. Failed: no trial could be measured, or the final job ended without a test."
    )
    return Fact("Users", f"{', '.join(parts)}, of {len(rows):,}", how)


def _beaten(gains: pd.Series[float], label: str, whose: str, run: RunData) -> Fact:
    known = {str(user): float(gain > 0) for user, gain in gains.dropna().items()}
    how = (
        f"Users whose own memory has a lower test loss than {whose}, among those with both; the interval is "
        "a bootstrap over users (95 %), and left out where all are alike."
    )
    if not known:
        return Fact(label, _untested(run), how)
    won = mean_interval(known, n_resamples=_RESAMPLES, method="percentile")
    # Where all users are alike, resampling them shows no spread, which is no certainty.
    ends = f" [{_percent(won.low)} to {_percent(won.high)}]" if won.high > won.low else ""
    count = int(sum(known.values()))
    return Fact(label, f"{_percent(won.value)}{ends}: {count:,} of {len(known):,} users{_few(won)}", how)


def _median(gains: pd.Series[float], run: RunData) -> Fact:
    label = "Median gain over no memory"
    how = (
        "Test loss of the base less that of the user's own memory, in nats per token; above 0 the memory is "
        "better. Median over users, with its bootstrap interval (95 %, percentile)."
    )
    known = {str(user): float(gain) for user, gain in gains.dropna().items()}
    if not known:
        return Fact(label, _untested(run), how)
    found = median_interval(known, n_resamples=_RESAMPLES)
    ends = "" if found.method == "none" else f" [{found.low:+.4f} to {found.high:+.4f}]"
    return Fact(label, f"{found.value:+.4f} nats per token{ends}{_few(found)}", how)


def _validation(run: RunData, table: pd.DataFrame) -> Fact:
    """What the search itself measured: it is there before any test, and flatters the choice."""
    name = run.measured[0]
    turned = OBJECTIVES[name].maximized(1.0)
    gains = (turned * (table[f"chosen_{name}"] - table[f"base_{name}"])).dropna()
    how = (
        f"{name} of the chosen trial beside that without a memory, on validation samples, turned so that "
        "above 0 is better; median over searches. It was chosen by these samples, so it promises too much."
    )
    label = f"Median validation gain in {name}"
    known = {str(user): float(gain) for user, gain in gains.items()}
    if not known:
        return Fact(label, "nothing chosen yet", how)
    found = median_interval(known, n_resamples=_RESAMPLES)
    ends = "" if found.method == "none" else f" [{found.low:+.4f} to {found.high:+.4f}]"
    return Fact(label, f"{found.value:+.4f}{ends}{_few(found)}{_simulated(run)}", how)


def _hours(run: RunData) -> Fact:
    hours, workers = worker_hours(run), run.study.ray.workers_per_trial
    ended = run.trials[run.trials.state != "pending"]
    unknown = int(ended[list(STAGES)].isna().all(axis=1).sum())
    on_gpu = bool((run.trials.gpu_memory > 0).any())
    gpus = run.study.ray.gpus_per_worker
    share = 1.0 if gpus == "auto" else float(gpus)
    label = "GPU-hours of the trials" if on_gpu and share else "Worker-hours of the trials"
    factor = share if on_gpu and share else 1.0
    value = hours * factor
    line = timeline_of(run)
    held = ""
    if line is not None and not line.unknown:
        held = f" at work; {held_hours(line) * workers * factor:,.2f} with start-up and lost workers"
    how = (
        f"Seconds of inject, instruct and eval of all trials, times {workers} worker(s) a trial"
        + (f" and {share:g} GPU a worker" if on_gpu and share else "")
        + ". Without waiting, proposals, workers that were lost, and the final job."
        + (
            " With start-up: from the handing out of a trial to its outcome, and lost attempts."
            if held
            else ""
        )
    )
    left = f" ({unknown:,} trials have no cost)" if unknown else ""
    if unknown == len(ended):
        return Fact(label, "not known: no trial has a cost" + _simulated(run), how)
    return Fact(label, f"{value:,.2f}{held}{left}{_simulated(run)}", how)


def _rank(run: RunData) -> Fact:
    largest = largest_rank(run)
    how = "The largest effective rank of a layer among all chosen placements; docs/serving.md."
    if not largest:
        return Fact("Largest rank to serve", "none chosen yet", how)
    fitting = [rank for rank in VLLM_RANKS if rank >= largest]
    engine = f"vLLM: --max-lora-rank {fitting[0]}" if fitting else f"beyond vLLM's largest, {VLLM_RANKS[-1]}"
    return Fact("Largest rank to serve", f"{largest} ({engine})", how)


def _untested(run: RunData) -> str:
    if run.study.simulation is not None:
        return "not tested: the run is simulated, and no model was trained"
    return "not tested yet"


def _simulated(run: RunData) -> str:
    return "; simulated" if run.study.simulation is not None else ""


def _few(found: Interval) -> str:
    return "; too few users to rely on" if found.few_users else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
