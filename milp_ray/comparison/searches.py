"""The search behind a method: a run as of `milp-ray search`, begun or gone on with.

It has no final job: a comparison trains the chosen placements as it trains every other method, so
that all have the same choice of a learning rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rich.console import Console

from milp_ray.comparison.cells import CellCost
from milp_ray.config.models import Study
from milp_ray.ids import POPULATION
from milp_ray.memory.placement import Placement
from milp_ray.study.driver import start_or_resume
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.tables import read_table


@dataclass(frozen=True)
class Search:
    """What a finished search left.

    Attributes:
        placements: chosen, by alias of a user, or the one of :data:`~milp_ray.ids.POPULATION`.
        trials: that ended.
        seconds: of training and measuring in these trials.
        tokens: that were trained on in these trials.
    """

    placements: Mapping[str, Placement]
    trials: int
    seconds: float
    tokens: int

    def placements_of(self, aliases: Iterable[str]) -> dict[str, Placement]:
        """The placements of users' memories; users whose search chose nothing are left out."""
        found = {alias: self.placements.get(alias, self.placements.get(POPULATION)) for alias in aliases}
        return {alias: placement for alias, placement in found.items() if placement is not None}

    def added_to(self, cost: CellCost) -> CellCost:
        """A cell's cost with the search in it."""
        return replace(
            cost,
            trials=self.trials,
            train_seconds=cost.train_seconds + self.seconds,
            train_tokens=cost.train_tokens + self.tokens,
        )


def search_behind(study: Study, console: Console) -> Search | None:
    """Run or resume a study to its end; None if it was asked to stop.

    Raises:
        MilpRayError: as :func:`milp_ray.study.driver.start_or_resume`.
    """
    outcome = start_or_resume(study, console)
    return None if outcome.interrupted else _found(outcome.folder)


def _found(folder: RunFolder) -> Search:
    trials, chosen = read_table(folder.layout.table("trials")), read_table(folder.layout.table("chosen"))
    placements = {
        str(user): Placement.from_key(str(key))
        for user, key in zip(chosen.user, chosen.placement, strict=True)
    }
    ended = trials[trials.trial >= 0]
    seconds = ended[["inject_seconds", "instruct_seconds", "eval_seconds"]].sum().sum()
    return Search(placements, len(ended), float(seconds), int(ended.train_tokens.sum()))
