"""`make audit` without a network: advisories in the OSV format against the lock files."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
LOCK = "# a comment\nLeft_Pad==1.4.2 \\\n    --hash=sha256:00\nother==2.0; python_version < '3.12'\n"


def advisory(**changes: Any) -> dict[str, Any]:
    """A made-up one: left-pad from 1.0 on, mended in 1.5."""
    span = {"type": "ECOSYSTEM", "events": [{"introduced": "1.0"}, {"fixed": "1.5"}]}
    package = {"ecosystem": "PyPI", "name": "left-pad"}
    affected = {"package": package, "ranges": [span]} | changes.pop("affected", {})
    return {"id": "MADE-UP-1", "summary": "pads too far", "affected": [affected]} | changes


def audit(folder: Path, *advisories: object, lock: str = LOCK) -> tuple[int, str]:
    (folder / "lock.txt").write_text(lock, encoding="utf-8")
    (folder / "advisories.json").write_text(json.dumps(list(advisories)), encoding="utf-8")
    return audited(folder / "advisories.json", folder / "lock.txt")


def audited(*words: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/audit.py", *words], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


def test_a_locked_version_with_an_advisory_fails_and_is_named(tmp_path: Path) -> None:
    code, said = audit(tmp_path, advisory())
    assert code == 1 and "left-pad 1.4.2: MADE-UP-1 pads too far" in said


@pytest.mark.parametrize(
    ("affected", "code"),
    [
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.4.2"}]}]}, 0),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"last_affected": "1.4.2"}]}]}, 1),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "1.4.10"}]}]}, 0),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "1.4.2"}]}]}, 1),
        ({"ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}]}, 0),
        ({"ranges": [], "versions": ["1.4.2"]}, 1),
        ({"ranges": [], "versions": ["not-a-version", "1.4.1"]}, 0),
        ({"package": {"ecosystem": "npm", "name": "left-pad"}}, 0),
        ({"package": {"ecosystem": "PyPI", "name": "left.pad"}}, 1),
    ],
)
def test_versions_count_as_the_format_says(affected: dict[str, Any], code: int, tmp_path: Path) -> None:
    assert audit(tmp_path, advisory(affected=affected))[0] == code


def test_a_withdrawn_advisory_does_not_count(tmp_path: Path) -> None:
    assert audit(tmp_path, advisory(withdrawn="2026-01-01T00:00:00Z"))[0] == 0


def test_nothing_to_compare_is_an_error_and_no_all_clear(tmp_path: Path) -> None:
    assert audit(tmp_path)[0] == 2
    assert audit(tmp_path, advisory(), lock="# empty\n")[0] == 2


def test_a_folder_and_a_zip_archive_are_read(tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text(LOCK, encoding="utf-8")
    (tmp_path / "osv").mkdir()
    (tmp_path / "osv/MADE-UP-1.json").write_text(json.dumps(advisory()), encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "osv/MADE-UP-1.json", "MADE-UP-1.json")
    for source in ("osv", "all.zip"):
        assert audited(tmp_path / source, tmp_path / "lock.txt")[0] == 1


def test_the_projects_lock_files_are_audited_and_every_excuse_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(advisory()), encoding="utf-8")
    code, said = audited(tmp_path / "a.json", ROOT / "constraints.txt", ROOT / "constraints-stores.txt")
    assert code == 0 and int(said.split()[0]) > 200, said
