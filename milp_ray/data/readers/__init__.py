"""Readers: from files of a dataset's format to user records; one a format, by name.

To add a format, write one module here with a function ``(Source) -> ReadResult``, decorate it with
``@register("name", users=…, licence=…, …)`` and name it in ``_MODULES``.
:mod:`milp_ray.data.readers.strict` has what it needs: ``LineFile`` or ``read_whole`` for the bytes
and their fingerprint (``content="text"`` for a table), ``decode`` or ``parse``, ``check_text`` for
every text, and ``Faults``, which collects the problems of a file;
:mod:`milp_ray.data.readers.timelines` puts texts and samples of many lines in order, user by user.
A user needs a history and samples; ``n_hist`` of a sample is the number of history texts that are
older than it, or None where that is not known. ``TestEveryReader`` of tests/data/test_readers.py
says what a reader keeps.

Selecting and splitting users is *not* a reader's part: see :mod:`milp_ray.data.splits`. Errors of a
reader carry positions only, never a user's text or id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from milp_ray.config.models import ColumnSettings, DataSettings
from milp_ray.data.readers.source import Copies, ReadResult, Source
from milp_ray.data.records import Sample
from milp_ray.errors import DataError, Problem
from milp_ray.registry import Registry
from milp_ray.storage import is_url

__all__ = [
    "Format",
    "ReadResult",
    "Reader",
    "Source",
    "find_format",
    "predictions_of",
    "read_users",
    "reader_names",
    "register",
]

Reader = Callable[[Source], ReadResult]
Predictions = Callable[[Source, Sequence[Sample], Sequence[str]], str]

_MODULES = ("amazonqa", "jsonl", "lamp", "longlamp", "malp", "messages", "personamem", "reddit", "table")


@dataclass(frozen=True, slots=True)
class Format:
    """A format that can be read.

    Attributes:
        read: its reader.
        users: who a user is, in words.
        licence: of the data, as its source names it; "your own" for formats of people's own data.
        citation: what its source asks to be cited, or the source itself; empty for own data.
        files: names of further files that it has (``data.files``).
        columns: names of the columns or keys that it has (``data.columns``).
        predictions: writes responses in the form that the data set's own evaluation reads, as JSON;
            None where it has none.
    """

    read: Reader
    users: str
    licence: str
    citation: str = ""
    files: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    predictions: Predictions | None = None


_REGISTRY: Registry[Format] = Registry("reader", [f"{__name__}.{name}" for name in _MODULES])
reader_names = _REGISTRY.names


def register(
    name: str,
    *,
    users: str,
    licence: str,
    citation: str = "",
    files: tuple[str, ...] = (),
    columns: tuple[str, ...] = (),
    predictions: Predictions | None = None,
) -> Callable[[Reader], Reader]:
    """A decorator that makes a reader known as ``data.format: NAME``; see :class:`Format`.

    Raises:
        ValueError: the name is taken.
    """

    def add(read: Reader) -> Reader:
        _REGISTRY.register(name)(Format(read, users, licence, citation, files, columns, predictions))
        return read

    return add


def find_format(name: str) -> Format:
    """The format called ``name``.

    Raises:
        DataError: there is none.
    """
    found = _REGISTRY.find(name)
    if found is None:
        fact = f"no reader is named {name!r}"
        remedy = _REGISTRY.hint(name) or "correct data.format in the study file"
        raise DataError("data.format", [Problem("", fact, "one of " + ", ".join(reader_names()), remedy)])
    return found


def read_users(settings: DataSettings) -> ReadResult:
    """Read the file that ``settings.path`` names with the reader that ``settings.format`` names.

    All users of the file are returned; ``settings.users`` is applied by
    :mod:`milp_ray.data.splits`, which alone knows who can be used.

    Raises:
        StorageError: it is at a URL that cannot be read.
        DataError: unknown format; the file is missing, unreadable, malformed, or has no user left.
    """
    known = find_format(settings.format)
    _check_extras(settings, known)
    path = settings.path if is_url(settings.path) else str(Path(settings.path).expanduser())
    with _opened(settings) as source:
        result = known.read(source)
    if not result.users:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in sorted(result.skipped.items()))
        fact = f"no user is left ({reasons})" if reasons else "holds no user"
        expected = "at least one user with a history and samples"
        remedy = "check that data.path and data.format belong together"
        raise DataError(path, [Problem("", fact, expected, remedy)])
    return result


def predictions_of(settings: DataSettings, samples: Sequence[Sample], responses: Sequence[str]) -> str | None:
    """Responses in the form that the data set's own evaluation reads; None where it has none.

    Args:
        settings: by which the samples were read.
        samples: of any users.
        responses: one for each sample.

    Raises:
        DataError, StorageError: a file that the form needs cannot be read.
    """
    write = find_format(settings.format).predictions
    if write is None:
        return None
    with _opened(settings) as source:
        return write(source, samples, responses)


@contextmanager
def _opened(settings: DataSettings) -> Iterator[Source]:
    """The files, on this machine inside a ``with`` block; errors name the study's own."""
    with ExitStack() as stack:
        copies = Copies(stack)
        try:
            yield Source(copies.of(settings.path), settings, copies)
        except DataError as error:
            raise copies.named(error) from None


def _check_extras(settings: DataSettings, known: Format) -> None:
    """Refuse further files and columns that the format does not have: they would be ignored."""
    given = [name for name in ColumnSettings.model_fields if getattr(settings.columns, name) is not None]
    problems = []
    for what, names, valid in (
        ("data.files", list(settings.files), known.files),
        ("data.columns", given, known.columns),
    ):
        for name in names:
            if name not in valid:
                fact = f"data.format {settings.format!r} has no such name"
                expected = "one of " + ", ".join(valid) if valid else "none"
                problems.append(Problem(f"{what}.{name}", fact, expected, "remove it, or see docs/data.md"))
    if problems:
        raise DataError("data", problems)
