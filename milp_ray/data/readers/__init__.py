"""Readers: from a file of a dataset's format to user records; one a format, by name.

To add a format, write one module here with a function ``(path) -> ReadResult``, decorate it with
``@register("name")`` and name it in ``_REGISTRY``. :mod:`milp_ray.data.readers.strict` has what it
needs: ``LineFile`` or ``read_whole`` for the bytes and their fingerprint (``content="text"`` for a
table), ``decode`` or ``parse``, ``check_text`` for every text, and ``Faults``, which collects the
problems of a file. A user needs a history and samples; ``n_hist`` of a sample is the number of
history texts that are older than it, or None where that is not known. ``TestEveryReader`` of
tests/data/test_readers.py says what a reader keeps.

Selecting and splitting users is *not* a reader's part: see :mod:`milp_ray.data.splits`. Errors of a
reader carry positions only, never a user's text or id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from milp_ray.config.models import DataSettings
from milp_ray.data.records import UserRecord
from milp_ray.errors import DataError, Problem
from milp_ray.registry import Registry
from milp_ray.storage import is_url, temporary_copy


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a reader found.

    Attributes:
        users: every user with at least one history text and one sample, in the file's order.
        skipped: reason -> how many users were left out for it.
        fingerprint: SHA-256 (hex) of the file's bytes, taken from the bytes that were parsed.
    """

    users: tuple[UserRecord, ...]
    skipped: Mapping[str, int]
    fingerprint: str


Reader = Callable[[Path], ReadResult]

_REGISTRY: Registry[Reader] = Registry("reader", [f"{__name__}.jsonl", f"{__name__}.malp"])
register = _REGISTRY.register
reader_names = _REGISTRY.names


def read_users(settings: DataSettings) -> ReadResult:
    """Read the file that ``settings.path`` names with the reader that ``settings.format`` names.

    All users of the file are returned; ``settings.users`` is applied by
    :mod:`milp_ray.data.splits`, which alone knows who can be used.

    Raises:
        StorageError: it is at a URL that cannot be read.
        DataError: unknown format; the file is missing, unreadable, malformed, or has no user left.
    """
    reader = _REGISTRY.find(settings.format)
    if reader is None:
        fact = f"no reader is named {settings.format!r}"
        remedy = _REGISTRY.hint(settings.format) or "correct data.format in the study file"
        raise DataError("data.format", [Problem("", fact, "one of " + ", ".join(reader_names()), remedy)])
    path = settings.path
    if is_url(path):
        with temporary_copy(path) as copy:
            try:
                result = reader(copy)
            except DataError as error:  # names the copy, which nobody knows
                here = str(copy)
                problems = [replace(p, where=p.where.replace(here, path)) for p in error.problems]
                raise DataError(path, problems) from None
    else:
        path = str(Path(path).expanduser())
        result = reader(Path(path))
    if not result.users:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in sorted(result.skipped.items()))
        fact = f"no user is left ({reasons})" if reasons else "holds no user"
        expected = "at least one user with a history and samples"
        remedy = "check that data.path and data.format belong together"
        raise DataError(path, [Problem("", fact, expected, remedy)])
    return result
