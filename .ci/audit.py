#!/usr/bin/env python3
"""Which locked packages have published vulnerabilities, by a file of advisories in the OSV format.

    audit.py ADVISORIES LOCK [LOCK ...]

ADVISORIES is a JSON file, a folder of JSON files, or a zip archive of them, as osv.dev publishes
for each ecosystem. So the script works without a network; with one, `make audit` asks pip-audit.
Vulnerabilities that `.ci/audit-allow.txt` names with a reason are told, and do not count. Exit
codes: 0 none, 1 some, 2 a file cannot be read.

Source of the format: OpenSSF, Open Source Vulnerability format, schema 1.7 (affected: ranges and
versions).
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ALLOWED = Path(__file__).with_name("audit-allow.txt")
_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", re.MULTILINE)


def pins(text: str) -> set[tuple[str, Version]]:
    """Canonical names and versions in a lock file; other lines (hashes, comments) are skipped."""
    return {(canonicalize_name(name), Version(version)) for name, version in _PIN.findall(text)}


def advisories(path: Path) -> Iterator[dict[str, Any]]:
    """Every advisory of a file, folder or zip archive.

    Raises:
        OSError, ValueError: it cannot be read, or is not JSON.
    """
    if path.is_dir():
        for file in sorted(path.rglob("*.json")):
            yield from advisories(file)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".json"):
                    yield json.loads(archive.read(name))
    else:
        found = json.loads(path.read_text(encoding="utf-8"))
        yield from found if isinstance(found, list) else [found]


def is_affected(version: Version, affected: dict[str, Any]) -> bool:
    """Whether a version is among those that an entry of ``affected`` lists or spans."""
    if any(_version(listed) == version for listed in affected.get("versions", ())):
        return True
    return any(
        _in_range(version, entry["events"])
        for entry in affected.get("ranges", ())
        if entry.get("type") == "ECOSYSTEM"
    )


def _in_range(version: Version, events: Iterable[dict[str, str]]) -> bool:
    inside = False
    steps = [(_version(text), kind) for event in events for kind, text in event.items()]
    for limit, kind in sorted((step for step in steps if step[0] is not None), key=lambda step: step[0]):
        if kind == "introduced" and version >= limit:
            inside = True
        elif (kind in ("fixed", "limit") and version >= limit) or (
            kind == "last_affected" and version > limit
        ):
            inside = False
    return inside


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:  # old releases have such; none that is locked does
        return None


def vulnerabilities(
    locked: set[tuple[str, Version]], found: Iterable[dict[str, Any]]
) -> list[tuple[str, str, str]]:
    """Ids, packages and summaries of the advisories that affect a locked version, by package."""
    versions: dict[str, list[Version]] = {}
    for name, version in locked:
        versions.setdefault(name, []).append(version)
    result = {
        (f"{name} {version}", entry["id"], entry.get("summary", ""))
        for entry in found
        if "withdrawn" not in entry
        for affected in entry.get("affected", ())
        if affected.get("package", {}).get("ecosystem") == "PyPI"
        for name in [canonicalize_name(affected["package"]["name"])]
        for version in versions.get(name, ())
        if is_affected(version, affected)
    }
    return [(number, package, summary) for package, number, summary in sorted(result)]


def allowed(text: str) -> dict[str, str]:
    """Ids and reasons of an allow list: ``ID reason``, one a line.

    Raises:
        ValueError: an id without a reason.
    """
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if bare := [line[0] for line in lines if len(line) < 2]:
        raise ValueError(f"no reason beside {', '.join(bare)}")
    return {line[0]: line[1].strip() for line in lines}


def main(words: list[str]) -> int:
    """See the module's docstring."""
    if len(words) < 2:
        print("usage: audit.py ADVISORIES LOCK [LOCK ...]", file=sys.stderr)
        return 2
    try:
        locked: set[tuple[str, Version]] = set()
        for lock in words[1:]:
            locked |= pins(Path(lock).read_text(encoding="utf-8"))
        entries = list(advisories(Path(words[0])))
        excused = allowed(ALLOWED.read_text(encoding="utf-8"))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"error: {error}; expected: advisories in the OSV format, and lock files", file=sys.stderr)
        return 2
    if not locked or not entries:
        print(
            f"error: {len(locked)} packages, {len(entries)} advisories: nothing to compare", file=sys.stderr
        )
        return 2
    found = vulnerabilities(locked, entries)
    for number, package, summary in found:
        print(
            f"{package}: {number} {summary}" + (f" (allowed: {excused[number]})" if number in excused else "")
        )
    counted = [number for number, *_ in found if number not in excused]
    print(f"{len(locked)} packages, {len(entries)} advisories, {len(counted)} vulnerabilities")
    return 1 if counted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
