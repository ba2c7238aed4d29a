"""What a user can get wrong: errors with the fact, what was expected and the remedy.

A file with several faults is reported with all of them in one go (:class:`ProblemsError`).
Programming mistakes inside milp_ray are *not* covered: those stay ordinary Python exceptions with a
traceback. No error here ever carries a user's text or raw id: a position (line, offset, index) says
where to look.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_COLOURS = re.compile("\x1b\\[[0-9;]*m")  # of a terminal; Ray puts them into messages


@dataclass(frozen=True)
class Problem:
    """One fault: where it is, what is the case, what was expected, how to mend it."""

    where: str
    fact: str
    expected: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        head = f"{self.where}: {self.fact}" if self.where else self.fact
        lines = [head]
        if self.expected:
            lines.append(f"    expected: {self.expected}")
        if self.remedy:
            lines.append(f"    remedy: {self.remedy}")
        return "\n".join(lines)


class MilpRayError(Exception):
    """Base of every error that a user can mend.

    ``exit_code`` is what the command line and jobs end with: 2 where doing the same again fails
    again (the study, the data, the model), 1 where it need not (the cluster, the storage).
    """

    exit_code = 2

    def __init__(self, fact: str, *, where: str = "", expected: str = "", remedy: str = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem(where, fact, expected, remedy),)
        super().__init__(str(self.problems[0]))

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword arguments do not survive pickling by default; Ray pickles them.
        return (_rebuild, (type(self), self.problems, str(self)))

    def to_plain(self) -> dict[str, object]:
        """The error as JSON values, where no exception travels; see :func:`from_plain`."""
        problems = [[p.where, p.fact, p.expected, p.remedy] for p in self.problems]
        return {"kind": type(self).__name__, "text": str(self), "problems": problems}


class ProblemsError(MilpRayError):
    """Several faults of one source, reported together. ``title`` names the source."""

    def __init__(self, title: str, problems: Iterable[Problem]) -> None:
        self.title = title
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{title}: {count} problem{'s' if count != 1 else ''}"
        Exception.__init__(self, "\n".join([head, *(f"  {problem}" for problem in self.problems)]))


def exception_site(error: BaseException) -> str:
    """A foreign exception's type and site, without its message, which may quote a user's text."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def own_words(error: BaseException | str, most: int = 600) -> str:
    """A library's own message on one line; of a very long one its begin and end, cut between words.

    For errors that cannot quote a user's text alone: those of loading a model, of packages, of a
    cluster. A message without words is its type.
    """
    text = " ".join(_COLOURS.sub("", str(error)).split())
    if not text:
        return "" if isinstance(error, str) else type(error).__name__
    if len(text) <= most:
        return text
    head, tail = text[: most // 2].rsplit(" ", 1)[0], text[-most // 2 :].split(" ", 1)[-1]
    return f"{head} … {tail}"


def alike(error: MilpRayError) -> tuple[str, str]:
    """Equal for errors of one ``where`` that differ in numbers alone, such as memory left."""
    problem = error.problems[0]
    return problem.where, re.sub(r"[\d.]+", "#", problem.fact)


def from_plain(plain: Mapping[str, Any]) -> MilpRayError:
    """The error that :meth:`MilpRayError.to_plain` described."""
    kinds = {kind.__name__: kind for kind in _kinds(MilpRayError)}
    problems = tuple(Problem(*values) for values in plain["problems"])
    return _rebuild(kinds.get(str(plain["kind"]), MilpRayError), problems, str(plain["text"]))


def _kinds(kind: type[MilpRayError]) -> Iterator[type[MilpRayError]]:
    for found in kind.__subclasses__():
        yield found
        yield from _kinds(found)


def _rebuild(kind: type[MilpRayError], problems: tuple[Problem, ...], text: str) -> MilpRayError:
    error = kind.__new__(kind)
    error.problems = problems
    error.args = (text,)
    return error


class StudyError(ProblemsError):
    """The study file, or an override on the command line, is wrong."""


class DataError(ProblemsError):
    """The users' data cannot be read, or too little of it can be used."""


class InstallError(ProblemsError):
    """The packages beside this one are not those that it asks for."""


class JudgeError(ProblemsError):
    """A judge of responses cannot be asked, or labels that people gave cannot be read."""


class LeakError(MilpRayError):
    """A held-out response would be seen in training. Nothing mends it: the split is wrong."""


class ModelError(MilpRayError):
    """The base model cannot be loaded, or its architecture is not supported."""


class SpaceError(MilpRayError):
    """A memory space or configuration is not well-formed, or does not fit the model."""


class SearchError(MilpRayError):
    """Wrong use of the ask/tell engine, or an event log that does not belong to the search."""


class StorageError(MilpRayError):
    """The run folder cannot be written or read (permissions, full disk, damaged file)."""

    exit_code = 1


class RunFolderError(MilpRayError):
    """The run folder exists already, or is not a run folder, or lacks what is asked for."""


class RunBusyError(RunFolderError):
    """Another driver works on the run, or took it over."""

    exit_code = 1


class ClusterError(MilpRayError):
    """Ray cannot be reached, or the cluster cannot give what the study asks."""

    exit_code = 1


class ClusterMismatchError(ClusterError):
    """The cluster and this process do not fit together, however often they try."""

    exit_code = 2


class TrialFailed(Exception):  # noqa: N818  (it names an outcome, not a mistake of the user)
    """A trial that ended without a measurement. The search is told; the study goes on."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
