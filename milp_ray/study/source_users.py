"""Transfer between a run's users: finished searches are the sources of later ones.

What is transferred, and what a search makes of it, is :mod:`milp_ray.search.core.transfer_data`'s.
Here is who learns from whom in time: the first users run cold; a later cohort learns from all users
that were finished before it began, however many of them measured something.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from milp_ray.search.source_pool import SourcePool
from milp_ray.study.inputs import Inputs, objectives_of

if TYPE_CHECKING:
    from milp_ray.config.models import Study
    from milp_ray.search import Engine
    from milp_ray.study.population import Population


class SourceUsers:
    """The finished users of a run, as sources; each one's event log is replayed once a session.

    Args:
        study: with the mode of transfer.
        inputs: of the same study.
        population: its users.
        notify: is told from how many a cohort learns, and if there is nobody to learn from.
    """

    def __init__(
        self, study: Study, inputs: Inputs, population: Population, notify: Callable[[str], object]
    ) -> None:
        search = study.search
        self._users = population
        self._mode = search.transfer
        self._notify = notify
        self._known: set[str] = set()
        self._pool = SourcePool(inputs.space, objectives_of(study, inputs.architecture), search.transfer)

    def gather(self, cohort: Collection[str]) -> Callable[[Engine], object] | None:
        """Take in who has finished since the last cohort.

        Returns:
            What gives a user of ``cohort`` that has not begun what finished ones showed, once its
            no-memory measurement says which of them are near; None where there is nothing to give.
        """
        if self._mode == "none" or not set(cohort).isdisjoint(self._users.cold):
            return None
        for alias in self._users.aliases:
            if alias not in self._known and alias not in cohort and self._users.finished(alias):
                self._known.add(alias)
                self._pool.add(self._users.engine(alias))
        if fresh := sum(not self._users.engine(alias).counts.asked for alias in cohort):
            self._notify(
                f"{fresh} users learn from {len(self._pool)} that are done"
                if self._pool.ready
                else f"{fresh} users learn from nobody: no user that is done has a trial that was measured"
            )
        return self._pool.give if self._pool.ready else None
