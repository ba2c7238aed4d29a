"""The commands and paths of CONTRIBUTING.md are there, and its example of a single test runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))),
]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("$ ").partition("  #")[0].strip()
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
PYTHON = ".venv/bin/python "


def test_every_target_that_is_named_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|\$ )make ([a-z-]+)", PAGE))
    assert {"install", "test", "test-quick", "lint"} <= named
    assert [target for target in sorted(named) if f"\n{target}:" not in makefile] == []


def test_every_command_is_a_target_or_runs_in_the_environment() -> None:
    assert [command for command in COMMANDS if not command.startswith(("make ", PYTHON))] == []


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith(PYTHON)])
def test_the_examples_of_single_tests_run(command: str) -> None:
    words = shlex.split(command.removeprefix(PYTHON))
    done = subprocess.run(
        [sys.executable, *words, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b[1-9]\d* passed", done.stdout)


def test_what_is_named_by_its_path_is_there() -> None:
    paths = re.findall(r"`((?:tests|milp_ray|benchmarks|\.ci)/[\w/.]*|[\w-]+\.(?:cfg|txt))`", PAGE)
    assert ".ci/run" in paths and "constraints.txt" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert all(os.access(ROOT / path, os.X_OK) for path in paths if path.startswith(".ci/"))


def test_a_test_that_is_named_is_there() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    names = re.findall(r"`(test_\w+)`", PAGE)
    assert names and [name for name in names if f"def {name}(" not in tests] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_within_the_repository_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    assert [to for to in targets if not ((ROOT / document).parent / to).exists()] == []
