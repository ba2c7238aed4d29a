"""The house rules of docs/architecture.md: who imports whom, what is cheap, what is named how."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

RAY_ROOMS = {"tune", "study", "jobs"}


@pytest.mark.parametrize("path", house.MODULES, ids=lambda p: str(p.relative_to(house.PACKAGE)))
def test_others_libraries_stay_in_their_rooms(path: Path) -> None:
    here = house.room_of(path).partition("/")[0]
    for name in house.imports(path):
        top = name.partition(".")[0]
        if top == "ray":
            assert here in RAY_ROOMS, f"{path} imports Ray"
        if top == "ax":
            assert house.room_of(path) == "search/ax", f"{path} imports Ax"


def test_imports_go_down_and_never_in_a_circle() -> None:
    found = house.arrows()
    assert house.climbing(found) == [] and house.circles(found) == []


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("milp_ray", {"torch", "ray", "numpy", "pandas"}),
        ("milp_ray.cli", {"torch", "ray", "pandas", "transformers", "botorch", "ax", "jax"}),
        ("milp_ray.jobs.entry", {"torch", "ray", "pandas", "transformers", "botorch", "ax", "jax"}),
        ("milp_ray.jobs.package", {"torch", "ray", "pandas", "numpy"}),
        ("milp_ray.config.loading", {"torch", "ray", "pandas", "numpy"}),
        ("milp_ray.search", {"botorch", "ax", "jax", "ray", "transformers"}),
        ("milp_ray.memory.space", {"torch", "ray", "peft"}),
        ("milp_ray.tune.proposals.queue", {"ray", "torch", "botorch", "jax", "transformers"}),
        ("milp_ray.tune.search.simulated", {"torch", "botorch", "jax", "transformers", "peft"}),
        ("milp_ray.trial.lifecycle", {"ray", "ax", "botorch", "jax"}),
        ("milp_ray.evaluation.compare", {"ray", "ax", "botorch", "jax"}),
        ("milp_ray.evaluation.judges.endpoint", {"torch", "ray", "pandas", "numpy", "transformers"}),
        ("milp_ray.evaluation.agreement", {"torch", "ray", "pandas", "transformers"}),
    ],
)
def test_imports_stay_cheap(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not unwanted & set(loaded)


def test_the_picture_of_the_house_is_that_of_the_code() -> None:
    assert house.drawn() == house.drawing(), "run: make house"


def test_every_room_stands_on_a_floor_and_every_floor_has_its_rooms() -> None:
    assert set(house.arrows()) == set(house.FLOOR)


def test_every_function_that_architecture_names_is_there() -> None:
    page = house.PAGE.read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py): ([\w.]+)`", page)
    assert len(named) >= 18
    missing = [f"{file}: {name}" for file, name in named if name not in defined(house.PACKAGE / file)]
    assert missing == []


def test_every_word_has_its_name_in_the_code() -> None:
    rows = glossary()
    names = {name for _, code, *_ in rows for name in re.findall(r"`(\w+)`", code)}
    assert len(names) > 80
    assert sorted(names - identifiers()) == []


def test_no_word_is_explained_twice_or_without_a_name() -> None:
    rows = glossary()
    words = [word for word, *_ in rows]
    assert len(words) == len(set(words))
    assert [word for word, code, meaning, _ in rows if not (re.search(r"`\w+`", code) and meaning)] == []


def glossary() -> list[list[str]]:
    """The rows of the glossary: word, names in the code, meaning, and the word before."""
    words = house.PAGE.read_text(encoding="utf-8").partition("## Words\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in words.splitlines() if "|" in line
    ]
    return [row for row in rows if row[0] != "word" and set(row[0]) != {"-"}]


def identifiers() -> set[str]:
    """What the package defines: modules, classes, functions, arguments, attributes, settings.

    Leading underscores are left out.
    """
    found = {path.stem for path in house.MODULES}
    for path in house.MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                    found.add(name.lstrip("_"))
                case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                    found.add(name.lstrip("_"))
                case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
                    found |= {one.value for one in ast.walk(values) if isinstance(one, ast.Constant)}
    return found


def defined(path: Path) -> set[str]:
    """The classes and functions of a module, methods as Class.method."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
    return found
