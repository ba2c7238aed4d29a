"""Whom a run searches, and who gets a memory of what is found.

The unit of a search is a user, or the population (``search.unit``). What a unit's trial does is
:mod:`milp_ray.trial.unit`'s; who is in it, and whose memories follow from its choice, is here
alone: driver, tables and `milp-ray check` ask a :class:`SearchUnits`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from milp_ray.config.models import Study
from milp_ray.data.records import UserSplit
from milp_ray.data.splits import drawn_order
from milp_ray.errors import DataError, Problem
from milp_ray.ids import POPULATION
from milp_ray.study.users import Users
from milp_ray.trial.unit import SearchUnit, shared_user

_MOST_NAMED = 20


class SearchUnits(ABC):
    """The units of a run's search, by alias.

    Attributes:
        noun: what one is called.
        begun: all that the run began with, in its order, those included that are gone since.
        present: those that are there.
        owners: users who get a memory, in the order of their aliases.
        shared: users' samples that the final job trains once, before any memory; None for none.
    """

    noun: str
    begun: tuple[str, ...]
    present: tuple[str, ...]
    owners: tuple[str, ...]
    shared: UserSplit | None = None

    @abstractmethod
    def of(self, owner: str) -> str:
        """The unit whose choice a user's memory is of."""

    @abstractmethod
    def members(self, unit: str) -> tuple[str, ...]:
        """The users that each trial of a unit injects for and measures."""

    @abstractmethod
    def unit(self, unit: str) -> SearchUnit:
        """A unit with its users' texts."""

    def check_searchable(self) -> None:
        """Make sure that trials can still be measured as the first ones were.

        Raises:
            DataError: they cannot, since users are gone.
        """
        return

    def described(self) -> list[tuple[str, str]]:
        """What `milp-ray check` says of it, as rows of a name and a text."""
        return []


class UserUnits(SearchUnits):
    """Each user is searched, and gets a memory of the own choice."""

    noun = "user"

    def __init__(self, users: Users) -> None:
        self._splits = users.splits
        self.begun, self.present = users.begun, tuple(users.splits)
        self.owners = self.present

    def of(self, owner: str) -> str:
        """The user itself."""
        return owner

    def members(self, unit: str) -> tuple[str, ...]:
        """The user alone."""
        return (unit,)

    def unit(self, unit: str) -> SearchUnit:
        """The user with all texts."""
        return SearchUnit.of_user(self._splits[unit])


class PopulationUnit(SearchUnits):
    """One placement is searched for everybody, on a sample of users that is the same in all trials.

    Where users are divided, the sample is of validation users, and test users get memories; else it
    is of all users, and all get one.

    Args:
        study: of the run.
        users: of the run.
    """

    noun = "population"

    def __init__(self, study: Study, users: Users) -> None:
        self._study, self._users, self._parts = study, users, users.parts
        self.begun = self.present = (POPULATION,)
        self._sampled = self._sample()
        self.owners = tuple(self._present_in("test")) if self._parts else tuple(users.splits)
        self.shared = self._in_common() if self._parts else None

    def of(self, owner: str) -> str:
        """The population, whoever it is."""
        return POPULATION

    def members(self, unit: str = POPULATION) -> tuple[str, ...]:
        """The sample, as far as it is there, in the order of aliases."""
        return tuple(alias for alias in self._sampled if alias in self._users.splits)

    def unit(self, unit: str = POPULATION) -> SearchUnit:
        """The sample with its texts, and the train users' samples if trials train on them."""
        users = tuple(self._users.splits[alias] for alias in self.members())
        return SearchUnit(POPULATION, users, self.shared if self._trials_share else None)

    def check_searchable(self) -> None:
        """See :meth:`SearchUnits.check_searchable`."""
        used = [*self._sampled, *(self._begun_in("train") if self._trials_share else ())]
        if gone := sorted(alias for alias in used if alias not in self._users.splits):
            names = ", ".join(gone[:_MOST_NAMED]) + (", …" if len(gone) > _MOST_NAMED else "")
            fact = f"{len(gone)} of the {len(used)} users that trials train or measure are gone ({names})"
            expected = "the same users in all trials of a population: their values are compared"
            remedy = "restore them, or start a new run under another study name"
            raise DataError(self._study.data.path, [Problem("", fact, expected, remedy)])

    def described(self) -> list[tuple[str, str]]:
        """See :meth:`SearchUnits.described`."""
        sampled, unit = f"{len(self.members())} of", "one placement for the population; a trial injects for"
        if not self._parts:
            return [("search unit", f"{unit} {sampled} {len(self.owners)} users")]
        train, validation, test = (len(self._present_in(part)) for part in ("train", "validation", "test"))
        samples = len(self.shared.train) if self.shared is not None else 0
        return [
            ("users by part", f"{train} train, {validation} validation, {test} test: these get a memory"),
            ("search unit", f"{unit} {sampled} {validation} validation users"),
            ("stage 2", f"shared: {samples} samples of train users"),
        ]

    @property
    def _trials_share(self) -> bool:
        return self.shared is not None and "instruct" in self._study.trial.stages

    def _sample(self) -> tuple[str, ...]:
        """Drawn from all that the run began with: it stays the same when one of them goes."""
        candidates = self._begun_in("validation") if self._parts else self._users.begun
        return tuple(sorted(drawn_order(candidates, self._study.seed)[: self._study.search.users_per_trial]))

    def _in_common(self) -> UserSplit:
        train, validation = (
            [self._users.splits[alias] for alias in self._present_in(part)]
            for part in ("train", "validation")
        )
        return shared_user(POPULATION, train, validation)

    def _begun_in(self, part: str) -> list[str]:
        return [alias for alias, where in self._parts.items() if where == part]

    def _present_in(self, part: str) -> list[str]:
        return [alias for alias in self._begun_in(part) if alias in self._users.splits]


def units_of(study: Study, users: Users) -> SearchUnits:
    """Whom a study's run searches.

    Args:
        study: resolved.
        users: of the run.
    """
    return PopulationUnit(study, users) if study.unit == "population" else UserUnits(users)
