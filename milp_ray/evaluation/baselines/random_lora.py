"""``random_lora``: the best of random placements, as many as the search tries.

The honest yardstick of a search: same space, same trials, same measure, no model. The placements
are drawn from the study's own space, without repetition while there are others, each is a trial as
the search runs it, and the lowest validation loss is trained as every method is. Sampling is what
``search.sampler: random`` does, but the number of trials may be set (``options.random_trials``).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

from milp_ray.data.records import UserSplit
from milp_ray.errors import TrialFailed
from milp_ray.evaluation.baselines import register
from milp_ray.evaluation.baselines.contents import QueryAlone
from milp_ray.evaluation.baselines.interface import (
    Bench,
    Carried,
    Cost,
    Learned,
    Method,
    own_folder,
    remembered,
)
from milp_ray.evaluation.baselines.sources import UserLora
from milp_ray.evaluation.baselines.training import everywhere
from milp_ray.memory.placement import Placement
from milp_ray.memory.space import space_from
from milp_ray.trial.lifecycle import Trial

_TRIES = 100  # draws in a row that may repeat before the space counts as exhausted


@register("random_lora")
def random_lora(bench: Bench) -> Method:
    """See the module."""
    return Method("random_lora", bench, RandomLora(bench), QueryAlone(bench))


class RandomLora:
    """Searches a user's placement at random, then trains it.

    The learning rate is chosen as everywhere, with LoRA in every layer: no placement is known yet.
    """

    name = "random_lora"

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._placements: dict[str, Placement] = {}
        self._final = UserLora(bench, "random_lora", self._placement)

    @property
    def fitted(self) -> frozenset[Path]:
        """See :class:`~milp_ray.evaluation.baselines.interface.Source`."""
        return self._final.fitted

    def fit(self, background: Sequence[UserSplit]) -> Learned:
        """Choose the learning rate of the final training."""
        return self._final.fit(background)

    def learn(self, user: UserSplit) -> Learned:
        """See :class:`~milp_ray.evaluation.baselines.interface.Source`."""
        searched = remembered(
            own_folder(self._bench, "random_search", user.alias), lambda: self._search(user)
        )
        self._placements[user.alias] = Placement.from_key(searched.note.rpartition(" ")[2])
        final = self._final.learn(user)
        return Learned(searched.cost + final.cost, f"{searched.note}; {final.note}")

    def carried(self, user: UserSplit) -> Carried:
        """The adapter of the best placement."""
        return self._final.carried(user)

    def _placement(self, user: UserSplit | None) -> Placement:
        return everywhere(self._bench) if user is None else self._placements[user.alias]

    def _search(self, user: UserSplit) -> Learned:
        bench = self._bench
        asked = bench.options.random_trials or bench.study.search.trials
        best, lowest, tokens, failed = Placement(), math.inf, 0, 0
        drawn = draw(bench, user, asked)
        for placement in drawn:
            try:
                with Trial(bench.base, user, placement, bench.study, seed=bench.seed) as trial:
                    measured = trial.run()
            except TrialFailed:
                failed += 1
                continue
            assert measured is not None
            tokens += measured.train_tokens
            if measured.loss < lowest:
                best, lowest = placement, measured.loss
        if not best:
            raise TrialFailed(f"none of {len(drawn)} random placements gave a finite validation loss")
        lost = f", {failed} failed" if failed else ""
        return Learned(
            Cost(trained_tokens=tokens),
            f"best of {len(drawn)} random placements{lost}, validation loss {lowest:.4f}: {best.key}",
        )


def draw(bench: Bench, user: UserSplit, count: int) -> list[Placement]:
    """Random placements of a user, each once; fewer where the space has fewer."""
    architecture = bench.base.architecture
    space = space_from(bench.study.memory, architecture.num_layers, architecture.width)
    rng = random.Random(bench.seed_of(user.alias))
    found: dict[str, Placement] = {}
    repeats = 0
    while len(found) < count and repeats < _TRIES:
        placement = space.placement(space.sample(rng))
        repeats = repeats + 1 if placement.key in found else 0
        found.setdefault(placement.key, placement)
    return list(found.values())
