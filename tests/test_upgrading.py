"""docs/upgrading.md lists what milp_ray uses of other libraries' private parts: all of it, and no
more."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "milp_ray"
PAGE = (ROOT / "docs" / "upgrading.md").read_text(encoding="utf-8")
# Documented in spite of the name, or of no annotation of Ray's. hashlib._Hash is typeshed's, for
# annotations.
PUBLIC = {"os._exit", "hashlib._Hash", "ray.ObjectRef", "ray.job_submission.JobSubmissionClient"}
_BY_NAME = ("getattr", "setattr", "hasattr", "delattr", "import_module")


@dataclass(frozen=True)
class Row:
    """A line of a table: the full name of what is used, the modules that use it, and tests that
    tell."""

    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]

    @property
    def last(self) -> str:
        """The part of the name by which code that uses it is known."""
        return re.split(r"[.(/]", self.name.rstrip("=)/"))[-1]


def rows() -> list[Row]:
    """All lines of the tables."""
    found = []
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            name, where, _, _, tests = (cell.strip() for cell in line.strip("|").split(" | "))
            found.append(Row(name.strip("`"), *(tuple(re.findall("`(.+?)`", c)) for c in (where, tests))))
    return found


ROWS = rows()


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.strip("_") != ""


def uses(path: Path) -> set[str]:
    """Names by which a module reaches for what is private elsewhere; our own private names are our
    own."""
    own = {name for node in nodes(path) for name in defined(node)}
    return {name for node in nodes(path) for name in reached(node, own)} - PUBLIC


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def methods() -> set[str]:
    """What some class of ours defines, so that a class that inherits from it may use it."""
    return {name for path in PACKAGE.rglob("*.py") for node in nodes(path) for name in defined(node)}


def defined(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        is_own = isinstance(node, ast.Name) or ast.unparse(node.value) in ("self", "cls")
        yield from [node.id if isinstance(node, ast.Name) else node.attr] if is_own else []


def reached(node: ast.AST, own: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Attribute) and is_private(node.attr):
        whose = ast.unparse(node.value)
        if whose == "super()" or node.attr not in (methods() if whose == "self" else own):
            yield ast.unparse(node)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith(PACKAGE.name):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if any(map(is_private, name.split("."))))
    elif isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
        yield from (name for name in names if any(map(is_private, name.split("."))))
    elif isinstance(node, ast.Call):
        yield from (word.arg for word in node.keywords if word.arg and is_private(word.arg))
        called = ast.unparse(node.func).rpartition(".")[2]
        given = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        for name in given if called in _BY_NAME else []:
            if any(map(is_private, name.split("."))) and name not in own:
                yield name


def is_listed(use: str, file: str) -> bool:
    """Whether a row names what is used there: an import or what is below or above it, else its last
    part."""
    names = [(f"{row.name}.", row.last) for row in ROWS if file in row.files]
    return any(
        name.startswith(f"{use}.") or f"{use}.".startswith(name) or last == use.rpartition(".")[2]
        for name, last in names
    )


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_private_name_that_is_used_is_listed(path: Path) -> None:
    file = path.relative_to(PACKAGE).as_posix()
    assert [use for use in sorted(uses(path)) if not is_listed(use, file)] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_is_listed_is_used_where_the_row_says(row: Row) -> None:
    assert row.files
    for file in row.files:
        assert row.last in (PACKAGE / file).read_text(encoding="utf-8"), file


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_test_that_a_row_names_is_there(row: Row) -> None:
    assert row.tests
    for test in row.tests:
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_what_ray_does_not_call_public_is_listed() -> None:
    named = {
        (name, path.relative_to(PACKAGE).as_posix())
        for path in PACKAGE.rglob("*.py")
        for node in nodes(path)
        for name in of_ray(node)
        if name not in PUBLIC
    }
    bare = [use for use in sorted(named) if not is_annotated(found(use[0]))]
    assert bare and [use for use in bare if not is_listed(*use)] == []


def of_ray(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ray":
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Attribute) and re.fullmatch(r"ray(\.\w+)+", name := ast.unparse(node)):
        yield name


def is_annotated(thing: object) -> bool:
    thing = getattr(thing, "_function", thing)
    return isinstance(thing, ModuleType) or getattr(thing, "_annotated_type", None) is not None


@pytest.mark.parametrize("name", [row.name for row in ROWS if re.fullmatch(r"[\w.]+", row.name)])
def test_what_is_listed_is_there(name: str, tiny_models: dict[str, Path]) -> None:
    if name.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    if name.startswith(("transformers.PreTrainedModel.", "torch.nn.Module._is")):
        name = f"{name.rpartition('.')[2]}"
        assert hasattr(loaded(tiny_models["llama"]), name)
        return
    found(name)


def found(name: str) -> Any:
    """What a full name stands for; of a class's instances, where the class itself does not have
    it."""
    module, parts = _module(name)
    thing: Any = module
    for part in parts:
        if isinstance(thing, type) and not hasattr(thing, part):
            thing = INSTANCES[f"{thing.__module__.partition('.')[0]}.{thing.__name__}"](thing)
        thing = getattr(thing, part)
    return thing


INSTANCES: dict[str, Any] = {
    "ray.JobConfig": lambda kind: kind(),
    "ray.Trial": lambda kind: kind("a name", stub=True),
    "torch.Module": lambda kind: kind(),
}


def _module(name: str) -> tuple[ModuleType, list[str]]:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            return importlib.import_module(".".join(parts[:count])), parts[count:]
        except ModuleNotFoundError:
            continue
    raise AssertionError(f"{name}: no such module")


@cache
def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def test_a_jobs_folder_has_the_name_by_which_a_job_knows_it() -> None:
    from ray._private.runtime_env.packaging import RAY_PKG_PREFIX

    from milp_ray.jobs import entry

    assert entry._PACKAGE == RAY_PKG_PREFIX


def test_the_method_that_a_head_is_known_by_is_one_of_rays() -> None:
    from ray.core.generated import gcs_service_pb2

    from milp_ray.tune.cluster import address

    service, method = address._CLUSTER_ID.removeprefix("/").split("/")
    services = gcs_service_pb2.DESCRIPTOR.services_by_name
    assert method in services[service.removeprefix("ray.rpc.")].methods_by_name
