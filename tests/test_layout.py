"""A run's paths stand in one place."""

from __future__ import annotations

import ast
import doctest

import pytest

from milp_ray import layout
from tests import house

# Names that mean nothing but a file or folder of a run.
OURS = {
    layout.META, layout.KEY, layout.SESSION, layout.MEMORIES, layout.CHECKPOINTS, layout.ADAPTERS,
    layout.EXPERIMENTS, layout.TUNE_LOG,
}  # fmt: skip


@pytest.mark.parametrize("path", house.MODULES, ids=lambda p: str(p.relative_to(house.PACKAGE)))
def test_no_other_module_spells_a_path_of_a_run(path: object) -> None:
    if path == house.PACKAGE / "layout.py":
        return
    spelled = {
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))  # type: ignore[attr-defined]
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not spelled & OURS


def test_its_example_is_true() -> None:
    assert doctest.testmod(layout).failed == 0
