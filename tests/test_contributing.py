"""CONTRIBUTING.md: its commands and paths are there, and documents keep the rules of prose."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))),
]
PROSE = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "findings/*.md", "benchmarks/*.md", "cluster/**/*.md")
    for path in ROOT.glob(pattern)
)
WIDTH = 100  # as lint.pycodestyle.max-doc-length in pyproject.toml
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


def too_long(text: str) -> list[str]:
    """Lines of prose over the width that could be broken: no code blocks, tables or links."""
    found, fenced = [], False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        words = re.sub(r"^\s*(- |\d+\. )?|`[^`]*`", "", line).split()
        if len(line) > WIDTH and len(words) > 1 and not fenced and not line.lstrip().startswith("|"):
            found.append(line)
    return found


def test_a_long_line_of_prose_is_found() -> None:
    prose = "It is a sentence. " * 6
    assert len(prose) > WIDTH and too_long(f"short\n{prose}\n  - {prose}") == [prose, f"  - {prose}"]
    assert too_long(f"```\n{prose}\n```\n| {prose} |\n- https://{'x' * WIDTH}\n{prose[:WIDTH]}") == []


@pytest.mark.parametrize("document", PROSE, ids=str)
def test_documents_wrap_prose_as_the_code_does(document: Path) -> None:
    assert too_long((ROOT / document).read_text(encoding="utf-8")) == []


def test_the_width_is_that_of_the_linter_and_of_the_page() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert {"W", "D205"} <= set(settings["select"])
    assert settings["pycodestyle"]["max-doc-length"] == WIDTH and f"at {WIDTH} columns" in PAGE


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_within_the_repository_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    assert [to for to in targets if not ((ROOT / document).parent / to).exists()] == []
