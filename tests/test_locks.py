"""The lock files agree with setup.cfg and with each other, and what is installed by hash has
one."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCKS = {
    "requirements.lock": "constraints.txt",
    "stores.lock": "constraints-stores.txt",
    "triton.lock": "constraints-triton.txt",
    "trackers.lock": "constraints-trackers.txt",
}
REMEDY = "run: make lock"


def entries(name: str) -> Iterator[tuple[str, str]]:
    """A lock file's requirements with what stands after each, its hashes."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = re.split(r"\s+(?=--hash)", line.strip(), maxsplit=1)
            yield requirement, "".join(hashes)


def pins(name: str) -> dict[str, Version]:
    found = [Requirement(requirement) for requirement, _ in entries(name)]
    return {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in found}


def product() -> list[Requirement]:
    return runpy.run_path(str(ROOT / ".ci/lowest.py"))["product"]()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("lock", "source"), LOCKS.items())
def test_a_lock_has_the_versions_of_its_source_each_with_a_hash(lock: str, source: str) -> None:
    # torch has one version and other files for CPUs and for CUDA.
    expected = {name: version for name, version in pins(source).items() if name != "torch"}
    assert pins(lock) == expected, REMEDY
    assert [pin for pin, hashes in entries(lock) if "--hash=sha256:" not in hashes] == []


def test_the_pinned_versions_are_allowed() -> None:
    pinned = pins("constraints.txt")
    wrong = [
        str(r)
        for r in product()
        if not r.specifier.contains(pinned[canonicalize_name(r.name)], prereleases=True)
    ]
    assert wrong == []


def test_the_lowest_versions_are_the_bounds_of_setup_cfg() -> None:
    lowest = pins("constraints-lowest.txt")
    bounds = {
        canonicalize_name(r.name): [Version(s.version) for s in r.specifier if s.operator == ">="]
        for r in product()
    }
    wrong = {name: (low, lowest[name]) for name, low in bounds.items() if low and lowest[name] != low[0]}
    assert wrong == {}, REMEDY


def test_no_bound_admits_a_version_with_a_vulnerability_that_is_known() -> None:
    """The lowest versions without a published advisory, as of November 2026."""
    safe = {"torch": "2.10", "transformers": "5.5", "ray": "2.55", "pyarrow": "23.0.1"}
    lowest = pins("constraints-lowest.txt")
    assert {name for name, version in safe.items() if lowest[name] < Version(version)} == set()


def test_no_lock_file_names_an_index() -> None:
    for name in (*LOCKS, *LOCKS.values(), "constraints-lowest.txt"):
        assert "://" not in (ROOT / name).read_text(encoding="utf-8"), name
