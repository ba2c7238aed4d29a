"""Samples of users with their texts, for a report that was asked to hold them (``--include-text``).

The only part of a report with a text or a raw id. They come from the study's data, which must be as
it was when the run began: a run folder holds no text of users, and no response of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from milp_ray.data.readers import read_users
from milp_ray.ids import POPULATION, alias_of
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.users import load_users

MOST_USERS = 24
_MOST_CASES = 3
_MOST_CHARACTERS = 600


@dataclass(frozen=True)
class Case:
    """A sample: what was asked, and what the user answered; long texts are cut."""

    query: str
    reference: str

    def __repr__(self) -> str:  # no text of a user by way of a traceback
        return f"Case(query=<{len(self.query)} characters>)"


@dataclass(frozen=True)
class UserCases:
    """Some of a user's samples.

    Attributes:
        alias: of the user.
        user_id: the user's id in the data.
        part: of the split: ``test``, or ``validation`` where there is no test sample.
        count: samples in that part.
        cases: the last ones of it.
    """

    alias: str
    user_id: str
    part: str
    count: int
    cases: tuple[Case, ...]

    def __repr__(self) -> str:
        return f"UserCases({self.alias})"


def read_cases(folder: RunFolder, drawn: Sequence[str]) -> list[UserCases]:
    """Samples of the drawn users, of a population those of its first users.

    Raises:
        DataError: the data cannot be read, or is other data than the run was begun with.
        StorageError: the key of the aliases cannot be read.
    """
    key = folder.key
    users = load_users(folder.study, key, folder.fingerprint)
    wanted = list(users.splits)[:MOST_USERS] if list(drawn) == [POPULATION] else list(drawn)
    everyone = folder.study.data.model_copy(update={"users": None})
    ids = {alias_of(record.user_id, key): record.user_id for record in read_users(everyone).users}
    found = []
    for alias in wanted:
        if (split := users.splits.get(alias)) is None:
            continue
        part = "test" if split.test else "validation"
        samples = split.test or split.validation
        cases = tuple(Case(_cut(sample.query), _cut(sample.response)) for sample in samples[-_MOST_CASES:])
        found.append(UserCases(alias, ids[alias], part, len(samples), cases))
    return found


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
