"""What a reader is given, and what it finds.

A :class:`Source` is the data file on this machine, the further files that a study names
(``data.files``) or that lie beside it, and the study's data settings. Files at URLs are copied
first, for as long as the reading lasts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from milp_ray.config.models import DataSettings
from milp_ray.data.records import UserRecord
from milp_ray.errors import DataError
from milp_ray.storage import is_url, joined, temporary_copy

_GZ = ".gz"


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a reader found.

    Attributes:
        users: every user with at least one history text and one sample, in the file's order.
        skipped: reason -> how many users were left out for it.
        fingerprint: SHA-256 (hex) of the files' bytes, taken from the bytes that were parsed.
        dropped: reason -> how many texts or samples were left out for it.
    """

    users: tuple[UserRecord, ...]
    skipped: Mapping[str, int]
    fingerprint: str
    dropped: Mapping[str, int] = field(default_factory=dict)


class Source:
    """A data file, what belongs to it, and how a study wants it read.

    Args:
        path: of the data file, on this machine.
        settings: of the study; None: the defaults.
        copies: where a path or URL of a study lies on this machine; None: paths as they are.
    """

    def __init__(
        self, path: Path, settings: DataSettings | None = None, copies: Copies | None = None
    ) -> None:
        self.path = path
        self.settings = settings or DataSettings(path=str(path))
        self._copies = copies or Copies(ExitStack())

    def further(self, name: str) -> Path | None:
        """The file that the study names ``data.files.NAME``; None where it names none."""
        given = self.settings.files.get(name)
        return None if given is None else self._copies.of(given)

    def beside(self, rename: Callable[[str], str]) -> Path | None:
        """The file in the data file's folder whose name follows from its own; None: there is none.

        Args:
            rename: from the data file's name, without ``.gz``, to the other's; "" where there is
                none. The other file is looked for as it is and packed by gzip.
        """
        folder, name = self._place()
        found = rename(name.removesuffix(_GZ))
        if not found:
            return None
        ends = (_GZ, "") if name.endswith(_GZ) else ("", _GZ)
        candidates = (self._copies.if_there(self._within(folder, found + end)) for end in ends)
        return next((path for path in candidates if path is not None), None)

    def name(self) -> str:
        """The data file's name as the study has it, without its folder."""
        return self._place()[1]

    def _place(self) -> tuple[str, str]:
        given = self.settings.path
        if is_url(given):
            folder, _, name = given.rpartition("/")
            return folder, name
        return str(Path(given).parent), Path(given).name

    def _within(self, folder: str, name: str) -> str:
        return joined(folder, name) if is_url(folder) else str(Path(folder) / name)


class Copies:
    """Files of a study on this machine: those at URLs are copied until ``stack`` is left."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._names: dict[str, str] = {}

    def of(self, given: str) -> Path:
        """Where a path or URL lies here; a path that does not exist where the URL has nothing.

        Raises:
            StorageError: a URL that cannot be read.
        """
        if not is_url(given):
            return Path(given).expanduser()
        copy = self._stack.enter_context(temporary_copy(given))
        self._names[str(copy)] = given
        return copy

    def if_there(self, given: str) -> Path | None:
        """The same; None where nothing is there."""
        path = self._stack.enter_context(temporary_copy(given)) if is_url(given) else self.of(given)
        if not path.exists():
            return None
        if is_url(given):
            self._names[str(path)] = given
        return path

    def named(self, error: DataError) -> DataError:
        """An error that names files by their URLs, not by copies that nobody knows."""
        title, problems = error.title, list(error.problems)
        for copy in sorted(self._names, key=len, reverse=True):
            url = self._names[copy]
            title = url if title == copy else title
            problems = [replace(p, where=p.where.replace(copy, url)) for p in problems]
        return DataError(title, problems)


def joint_fingerprint(*fingerprints: str) -> str:
    """One for several files; of one file it is that file's own."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()
