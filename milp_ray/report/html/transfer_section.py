"""Whether learning from finished users helped, as far as a run can say: it is no experiment."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from milp_ray.config.objectives import OBJECTIVES
from milp_ray.ids import POPULATION
from milp_ray.report.html.run_data import RunData

_SHARE = 0.9  # of the last hypervolume
HEADS = [
    "searches",
    "number",
    "validation gain (median)",
    f"trials to {100 * _SHARE:.0f} % of the hypervolume",
]


@dataclass(frozen=True)
class TransferSection:
    """Sentences, and rows of a table of searches with and without finished ones to learn from."""

    words: list[str]
    rows: list[list[str]]


def transfer_section(run: RunData, table: pd.DataFrame) -> TransferSection:
    """Searches that were given finished ones beside those that were not."""
    if run.is_population:
        return TransferSection(
            ["One placement was searched for everybody: there is nobody to learn from."], []
        )
    if run.study.search.transfer == "none":
        return TransferSection(["Transfer was off: every search learned from its own trials alone."], [])
    logs = {alias: facts for alias, facts in run.logs.items() if alias != POPULATION and facts.ended}
    given = [alias for alias, facts in logs.items() if facts.teachers]
    cold = [alias for alias, facts in logs.items() if not facts.teachers]
    if not given:
        return TransferSection(
            ["Transfer was on, and no search has had a finished one to learn from yet."], []
        )
    rows = [_row("with finished ones to learn from", given, run, table), _row("without", cold, run, table)]
    words = [
        f"Mode {run.study.search.transfer}: {len(given):,} searches were given finished ones, {len(cold):,} "
        "were not. That is no experiment: the first users of a run have nobody to learn from, so the two "
        "groups are different people, and later users may be easier or harder. Only a run of the same users "
        "with search.transfer: none tells what transfer is worth.",
        _trials_words(run, given),
    ]
    return TransferSection([text for text in words if text], rows)


def _row(label: str, aliases: list[str], run: RunData, table: pd.DataFrame) -> list[str]:
    name = run.measured[0]
    mine = table[table.index.isin(aliases)]
    gain = OBJECTIVES[name].maximized(1.0) * (mine[f"chosen_{name}"] - mine[f"base_{name}"]).dropna()
    curves = run.hypervolume[run.hypervolume.user.isin(aliases)].groupby("user", sort=False).hypervolume
    reached = [
        1 + int((values >= _SHARE * values.iloc[-1]).to_numpy().argmax())
        for _, values in curves
        if len(values) and values.iloc[-1] > 0
    ]
    return [
        label,
        f"{len(aliases):,}",
        f"{gain.median():+.4f} in {name}" if len(gain) else "not known",
        f"{pd.Series(reached).median():g} (median)" if reached else "not known",
    ]


def _trials_words(run: RunData, given: list[str]) -> str:
    """How often what was learned ended on the front, beside other trials of the same searches."""
    rows = run.trials[run.trials.user.isin(given) & (run.trials.state == "done")]
    learned = {alias: set(run.logs[alias].learned) for alias in given}
    taken = [trial in learned[user] for user, trial in zip(rows.user, rows.trial.astype(int), strict=True)]
    ours, others = rows[taken], rows[[not one for one in taken]]
    if ours.empty:
        return "No trial of theirs follows from what they were given."
    shares = [f"{100 * part.on_front.mean():.0f} % of {len(part):,}" for part in (ours, others) if len(part)]
    beside = f", beside {shares[1]} others of the same searches" if len(shares) > 1 else ""
    return (
        f"Of the trials that follow from finished searches {shares[0]} ended on their user's front{beside}. "
        "The two come at different times of a search, so this is a hint and no more."
    )
