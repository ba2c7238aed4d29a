"""Whose memories a run has."""

from __future__ import annotations

from collections.abc import Sequence

from milp_ray.errors import RunFolderError
from milp_ray.ids import is_alias
from milp_ray.layout import MEMORIES
from milp_ray.storage import names_in
from milp_ray.study.run_folder import RunFolder

MOST_NAMED = 20


def users_with_memory(folder: RunFolder, users: Sequence[str] = ()) -> list[str]:
    """The aliases of the users with a memory, or of those of them that are asked for, in order.

    Args:
        folder: of the run.
        users: aliases, or raw ids, which no error repeats; none: all.

    Raises:
        RunFolderError: nobody has one, or one of those that are asked for has none.
    """
    there = {name for name in names_in(folder.root / MEMORIES) if is_alias(name)}
    if not users and not there:
        raise RunFolderError(
            "the run has no memory",
            where=folder.location,
            expected="a run whose final job has trained users",
            remedy=f"train them with: milp-ray final {folder.location}",
        )
    asked = {folder.alias(user) for user in users} or there
    if missing := sorted(asked - there):
        raise RunFolderError(
            f"{len(missing)} of the users have no memory: {', '.join(missing[:MOST_NAMED])}",
            where=folder.location,
            expected="aliases, or ids, of users whom the final job has trained",
            remedy=f"see who has one with: milp-ray fronts {folder.location}",
        )
    return sorted(asked)
