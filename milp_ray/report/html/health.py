"""What went wrong in a run, or decided nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from milp_ray.config.objectives import instead_of
from milp_ray.ids import POPULATION
from milp_ray.report.html.population_section import layers_of
from milp_ray.report.html.run_data import RunData
from milp_ray.report.html.searches import is_surrogate

_FEW_TRIALS = 4  # fewer are not called constant
_MOST = 20  # reasons or notes that are listed
_EDGE = 0.5  # share of the choices on an edge from which it is told
_NAMES = {"rank": "rank r", "num_loras": "number of LoRAs n"}
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_ALIAS = re.compile(r"\bu-[a-z2-7]{13}\b")


@dataclass(frozen=True)
class Counted:
    """A reason or note, numbers in it left out, and how often it came."""

    count: int
    text: str


@dataclass(frozen=True)
class Health:
    """See the module.

    Attributes:
        findings: sentences; "nothing to report" is one of them.
        reasons: why trials failed, most frequent first.
        notes: of the event logs, likewise.
        left_out: sentences on users who are not in the tables.
    """

    findings: list[str]
    reasons: list[Counted]
    notes: list[Counted]
    left_out: list[str]


def health(run: RunData, table: pd.DataFrame) -> Health:
    """What is to be said of a run."""
    failed = run.trials[run.trials.state == "failed"]
    findings = [*_constant(run), *_failures(run, failed), *_used_up(run, table), *_edges(run), *_others(run)]
    return Health(
        findings or ["Nothing to report."],
        counted(failed.reason),
        counted(note for facts in run.logs.values() for note in facts.notes),
        _left_out(run, table),
    )


def counted(texts: Iterable[str]) -> list[Counted]:
    """Texts that differ in numbers or aliases alone count as one; of many the most frequent."""
    found = Counter(_NUMBER.sub("#", _ALIAS.sub("u-…", str(text))) for text in texts)
    kept = [Counted(count, text or "without a reason") for text, count in found.most_common(_MOST)]
    rest = len(found) - len(kept)
    return (
        [*kept, Counted(sum(found.values()) - sum(k.count for k in kept), f"{rest} others")] if rest else kept
    )


def _constant(run: RunData) -> list[str]:
    done = run.trials[run.trials.state == "done"]
    values = done.groupby("user")[run.measured].agg(["nunique", "count"])
    found = {}
    for name in run.measured:
        same = int(((values[name]["nunique"] == 1) & (values[name]["count"] >= _FEW_TRIALS)).sum())
        if same:
            found[name] = f"{name} is the same in every trial of {same:,} of {len(values):,} searches."
    if not found:
        return []
    ways = instead_of(list(found), run.study.objectives)
    return [*found.values(), f"What is constant decides nothing: {ways}."]


def _failures(run: RunData, failed: pd.DataFrame) -> list[str]:
    ended = int(run.trials.state.isin(["done", "failed"]).sum())
    lines = []
    if len(failed):
        share = 100 * len(failed) / max(1, ended)
        lines.append(
            f"{len(failed):,} of {ended:,} trials failed ({share:.1f} %), "
            f"of {failed.user.nunique():,} searches."
        )
    lost = run.trials[run.trials.attempts > 1]
    if len(lost):
        lines.append(f"{len(lost):,} trials ended after their worker had been lost, and ran again.")
    measured = set(run.trials[run.trials.state == "no memory"].user)
    without = set(run.trials[run.trials.state == "done"].user) - measured
    if without:
        lines.append(f"{len(without):,} searches have no no-memory measurement.")
    return lines


def _used_up(run: RunData, table: pd.DataFrame) -> list[str]:
    if run.placements is None:
        return []
    asked = table.done + table.failed + table.pending
    used = int((asked >= run.placements).sum())
    if not used:
        return []
    budget = run.study.search.trials
    return [
        f"The space is used up for {used:,} searches: all {run.placements:,} placements were proposed"
        + (f", fewer than the {budget:,} trials of the budget." if run.placements < budget else ".")
    ]


def _edges(run: RunData) -> list[str]:
    """Ends of the searched ranges that most chosen placements lie on: the best may lie beyond."""
    theta = run.trials[["user", "trial", "num_loras", "rank"]]
    chosen = run.chosen[["user", "trial"]].merge(theta, on=["user", "trial"])
    memory, searched = run.study.memory, run.study.memory.factors.split("+")
    if len(chosen) < _FEW_TRIALS:
        return []
    ends = []
    if "size" in searched and len(memory.ranks) > 1:
        ends += [("rank", max(memory.ranks), "largest", "memory.ranks")]
        ends += [("rank", min(memory.ranks), "smallest", "memory.ranks")]
    if "num" in searched:
        ends += [("num_loras", memory.max_loras or layers_of(run), "largest", "memory.max_loras")]
    return [
        f"{100 * share:.0f} % of {len(chosen):,} chosen placements have the {which} {_NAMES[name]} that is "
        f"searched, {value}: a wider range may have better ones ({key})."
        for name, value, which, key in ends
        if (share := float((chosen[name] == value).mean())) >= _EDGE
    ]


def _others(run: RunData) -> list[str]:
    """Surrogates that were fallen back to, and logs that could not be read."""
    lines = []
    sources: Counter[str] = Counter()
    for facts in run.logs.values():
        sources.update(facts.sources)
    wanted = run.study.search.surrogate
    for source, count in sorted(sources.items()):
        if is_surrogate(source) and source != wanted:
            lines.append(f"{count:,} trials were proposed by {source} in place of {wanted}.")
    for alias, reason in list(run.unreadable.items())[:_MOST]:
        lines.append(f"The event log of {alias} could not be read: {reason}.")
    return lines


def _left_out(run: RunData, table: pd.DataFrame) -> list[str]:
    lines = []
    if not run.is_population:
        begun = set(run.trials.user)
        waiting = [alias for alias in run.aliases if alias not in begun]
        if waiting:
            lines.append(f"{len(waiting):,} of {len(run.aliases):,} users of the run have no trial.")
    untested = table[table.state == "not tested"].drop(index=POPULATION, errors="ignore")
    if len(untested):
        lines.append(f"{len(untested):,} users have no test scores, though the final job is over.")
    lines.append(
        "Users whom the data's rules left out before the run began (too few samples, say) are not in the run "
        "folder: milp-ray check and the search's closing lines count them by reason."
    )
    return lines
