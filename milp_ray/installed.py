"""Whether the packages beside this one are those that it asks for.

What pip saw to once, PYTHONPATH or a later installation may have changed; what fails then names
neither.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from milp_ray.errors import InstallError, Problem

_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^]]*\])?>=([\d.]+)")  # setup.cfg has no other kind
_MODULES = {"ax-platform": "ax", "pyyaml": "yaml"}  # else as the package, with underscores


def check_versions() -> None:
    """Check that no package is older than setup.cfg allows.

    Raises:
        InstallError: some are, or are not there; all of them are named.
    """
    if problems := list(_too_old()):
        raise InstallError("the packages that are installed", problems)


def cause_of(error: ImportError) -> InstallError | None:
    """Why an import failed: a package is too old, or stands in front of the installed one."""
    problems = list(_too_old()) or list(_in_front())
    return InstallError(f"an import failed ({error.name or error.msg})", problems) if problems else None


def _required() -> Iterator[tuple[str, str]]:
    """The packages that are always needed, each with its lowest version."""
    try:
        lines = importlib.metadata.requires("milp_ray") or []
    except importlib.metadata.PackageNotFoundError:  # not installed: run from its folder
        return
    for line in lines:
        if "extra ==" not in line and (found := _REQUIREMENT.match(line)):
            yield found[1], found[2]


def _too_old() -> Iterator[Problem]:
    for name, lowest in _required():
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            yield Problem(name, "is not installed", f"{name}>={lowest}", f'pip install "{name}>={lowest}"')
            continue
        if _numbers(found.version) < _numbers(lowest):
            place = Path(str(found.locate_file("")))
            front = _python_path_of(place)
            yield Problem(
                name,
                f"version {found.version} is in {place}",
                f"{name}>={lowest}",
                _take_out(front) if front else f'pip install "{name}>={lowest}"',
            )


def _in_front() -> Iterator[Problem]:
    """Modules that PYTHONPATH has in front of a package's own."""
    for name, _ in _required():
        spec = importlib.util.find_spec(_MODULES.get(name, name.replace("-", "_")))
        place = importlib.metadata.distribution(name).locate_file("")
        if spec is None or spec.origin is None or Path(spec.origin).is_relative_to(str(place)):
            continue
        if front := _python_path_of(Path(spec.origin)):
            yield Problem(
                name, f"is imported from {spec.origin}", f"the package in {place}", _take_out(front)
            )


def _python_path_of(place: Path) -> str:
    """The entry of PYTHONPATH that something is imported from; empty for none.

    A checkout on PYTHONPATH may hold a whole environment, whose own folders are nearer.
    """
    given = {Path(entry).absolute(): entry for entry in _python_path() if entry}
    nearest = {*given, *(Path(entry).absolute() for entry in sys.path if entry)}
    within = [entry for entry in nearest if place.is_relative_to(entry)]
    return given.get(max(within, key=lambda entry: len(entry.parts)), "") if within else ""


def _python_path() -> list[str]:
    return os.environ.get("PYTHONPATH", "").split(os.pathsep)


def _take_out(entry: str) -> str:
    return f"take {entry} out of PYTHONPATH"


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version, without "rc1" or "+cpu"; 2.10 and 2.10.0 are the same."""
    numbers = [int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
