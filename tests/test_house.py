"""The house rules: who may import whom, and what must stay cheap to import (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "milp_ray"
# Ground floor first; a module may import from its own floor's room and from lower floors.
FLOORS = [
    {"errors", "__init__"},
    {"core_dumps", "ids", "registry", "storage"},
    {"config"},
    {"data", "memory"},
    {"search", "training", "evaluation"},
    {"tune"},
    {"study"},
    {"report"},
    {"terminal"},
    {"jobs"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
RAY_ROOMS = {"tune", "study", "jobs"}
AX_ROOMS = {"search"}


def imports(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return found + [
        n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and not n.level
    ]


def room_of(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = room_of(path)
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "ray":
            assert here in RAY_ROOMS, f"{path} imports Ray"
        if top == "ax":
            assert here in AX_ROOMS, f"{path} imports Ax"
        if top == "milp_ray" and rest:
            other = rest[0]
            beside = {here, other} == {"training", "evaluation"}  # one measures what the other trains
            assert other == here or beside or FLOOR[other] < FLOOR[here], f"{path} climbs to {other}"


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
        ("milp_ray.tune.queue", {"ray", "torch", "botorch", "jax", "transformers"}),
        ("milp_ray.tune.simulated", {"torch", "botorch", "jax", "transformers", "peft"}),
        ("milp_ray.training.trial", {"ray", "ax", "botorch", "jax"}),
        ("milp_ray.evaluation.compare", {"ray", "ax", "botorch", "jax"}),
    ],
)
def test_imports_stay_cheap(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not unwanted & set(loaded)
