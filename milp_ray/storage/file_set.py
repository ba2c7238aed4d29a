"""Which of a run's files a process needs: the rest is not even listed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class FileSet:
    """What a process needs of a run, so that the rest need not even be listed.

    Attributes:
        names: of files.
        folders: folder -> which of the files below it, a pattern as for ``fnmatch``.
    """

    names: tuple[str, ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether an object of this name belongs to it."""
        return name in self.names or any(
            name.startswith(f"{folder}/") and fnmatchcase(name[len(folder) + 1 :], pattern)
            for folder, pattern in self.folders.items()
        )
