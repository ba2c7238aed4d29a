"""A package that is too old, or in front of the installed one, is said as that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from milp_ray import installed
from milp_ray.errors import InstallError
from milp_ray.installed import cause_of, check_versions


def with_old_package(folder: Path, version: str = "") -> Path:
    """A folder for PYTHONPATH with an empty `peft`: as pip installs one, where a version is
    given."""
    (folder / "peft").mkdir(parents=True)
    (folder / "peft/__init__.py").write_text("")
    if version:
        (folder / f"peft-{version}.dist-info").mkdir()
        (folder / f"peft-{version}.dist-info/METADATA").write_text(f"Name: peft\nVersion: {version}\n")
    return folder


def test_this_installation_is_one_that_it_allows() -> None:
    check_versions()
    assert cause_of(ImportError("no such thing")) is None


def test_an_environment_in_a_checkout_on_the_path_is_not_in_its_own_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / ".venv" / "site-packages"
    (inside / "psutil").mkdir(parents=True)
    (tmp_path / "psutil").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(inside)])
    assert installed._python_path_of(inside / "psutil" / "__init__.py") == ""
    assert installed._python_path_of(tmp_path / "psutil" / "__init__.py") == str(tmp_path)


@pytest.mark.parametrize(
    ("found", "lowest", "old"),
    [
        ("2.9.1+cpu", "2.10", True),
        ("2.10.0+cu130", "2.10", False),
        ("2.10", "2.10.0", False),
        ("5.18.0.dev0", "5.18", False),
        ("0.4rc1", "0.21", True),
    ],
)
def test_versions_are_compared_as_numbers(found: str, lowest: str, old: bool) -> None:
    assert (installed._numbers(found) < installed._numbers(lowest)) == old


def test_every_requirement_is_understood() -> None:
    """Else a package would not be looked at."""
    import importlib.metadata

    lines = [line for line in importlib.metadata.requires("milp_ray") or [] if "extra ==" not in line]
    assert len(list(installed._required())) == len(lines) > 10


@pytest.mark.parametrize(("version", "says"), [("0.3.0", "version 0.3.0 is in "), ("", "is imported from ")])
def test_an_import_that_fails_names_the_path(version: str, says: str, tmp_path: Path) -> None:
    """As a command ends whose worker code cannot be imported."""
    old = with_old_package(tmp_path / "old", version)
    words = "from milp_ray.terminal import reported\n@reported\ndef run(): import peft.tuners\nexit(run())"
    paths = os.pathsep.join([str(old), str(Path(__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", words], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    told = " ".join(done.stderr.split())
    assert f"peft: {says}{old}" in told and f"take {old} out of PYTHONPATH" in told


def test_a_package_that_is_too_old_is_told_before_anything_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that imports well, too."""
    monkeypatch.syspath_prepend(str(with_old_package(tmp_path, "0.20.1")))
    with pytest.raises(InstallError, match=r"peft: version 0\.20\.1 is in") as caught:
        check_versions()
    assert caught.value.exit_code == 2 and 'pip install "peft>=' in str(caught.value)
