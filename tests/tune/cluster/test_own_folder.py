"""Where a private Ray's folder may be, and what is said where it may be nowhere."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from milp_ray.errors import ClusterError
from milp_ray.tune.cluster import own_folder as module
from milp_ray.tune.cluster.own_folder import own_folder

LONG = "/mnt/scratch/of/a/batch/system/job.1234567"


@pytest.fixture
def no_common(monkeypatch: pytest.MonkeyPatch) -> None:
    """/tmp that cannot be written; even by root, whom a mode does not stop."""
    monkeypatch.setattr(module, "_COMMON", "/proc/version")


def temporary(monkeypatch: pytest.MonkeyPatch, given: str, python: str) -> None:
    """TMPDIR, and what Python makes of it."""
    monkeypatch.setenv("TMPDIR", given)
    monkeypatch.setattr(tempfile, "tempdir", python)


def refusal() -> str:
    with pytest.raises(ClusterError) as caught, own_folder():
        pass
    assert caught.value.exit_code == 1
    return str(caught.value)


def test_a_long_temporary_folder_and_none_beside_it(monkeypatch: pytest.MonkeyPatch, no_common: None) -> None:
    temporary(monkeypatch, LONG, LONG)
    text = refusal()
    assert "TMPDIR is too long (42 characters, at most 28) and /proc/version cannot be written" in text
    assert "set TMPDIR to a short folder" in text


@pytest.mark.parametrize("exists", [False, True])
def test_a_temporary_folder_that_python_passed_over(
    monkeypatch: pytest.MonkeyPatch, no_common: None, tmp_path: Path, exists: bool
) -> None:
    given = str(tmp_path) if exists else f"{tmp_path}/none"
    monkeypatch.chdir("/")
    temporary(monkeypatch, given, "/")  # where it found no other: the folder that it was started in
    fact = "cannot be written" if exists else "is not a folder"
    assert f"TMPDIR ({given}) {fact} and /proc/version cannot be written" in refusal()
    assert not list(Path("/").glob("mr-*"))


def test_no_temporary_folder_at_all(monkeypatch: pytest.MonkeyPatch, no_common: None) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert "sockets: /proc/version cannot be written" in refusal()


def test_a_long_one_is_passed_over_for_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:
        monkeypatch.setattr(module, "_COMMON", short)
        temporary(monkeypatch, LONG, LONG)
        with own_folder() as own:
            assert own.path.parent == Path(short) and own.scratch() is None
        temporary(monkeypatch, short, short)
        with own_folder() as own:
            assert own.scratch() == own.path / "t"
        assert not list(Path(short).iterdir())
