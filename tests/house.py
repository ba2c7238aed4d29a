"""The rooms of milp_ray, their floors, the arrows between them, and their picture in
docs/architecture.md.

A room is a folder of the package, or a module beside them. An arrow leads from a room to one that
it imports from; annotations and imports inside functions count. ``make house`` draws the picture
anew, and tests/test_house.py compares it with the code.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "milp_ray"
PAGE = ROOT / "docs" / "architecture.md"
# Ground floor first: a module imports from its own room and from lower floors. A folder's inner
# rooms stand where they are named, below it or above it.
FLOORS = [
    {"errors", "__init__"},
    {"core_dumps", "ids", "installed", "registry"},
    {"layout"},
    {"storage"},
    {"config"},
    {"data", "memory"},
    {"data/readers", "search/core", "model/parallel"},
    {"search/surrogates", "search/transfer", "model"},
    {"search/acquisition", "training"},
    {"search", "evaluation"},
    {"search/ax", "trial", "evaluation/judges"},
    {"evaluation/baselines", "tracking"},
    {"tune/cluster"},
    {"tune/proposals"},
    {"tune/workers"},
    {"tune/search", "tune/final", "tune/comparison", "tune"},
    {"study"},
    {"serving"},
    {"report"},
    {"report/html"},
    {"comparison"},
    {"terminal"},
    {"jobs"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))
_BEGIN, _END = "<!-- drawn by `make house` -->\n", "<!-- end of the drawing -->\n"

Arrows = dict[str, set[str]]


def imports(path: Path) -> list[str]:
    """Every module that a file imports, by full name: ``from a import b`` is a.b where that is a
    module."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(path, node)
            inner = [f"{base}.{alias.name}" for alias in node.names if _file(f"{base}.{alias.name}")]
            found += inner if len(inner) == len(node.names) else [base, *inner]
    return found


def room_of(path: Path) -> str:
    """The room of a module: its folder below the package, or itself where it stands beside the
    folders."""
    folder = path.relative_to(PACKAGE).parent.as_posix()
    return path.stem if folder == "." else folder


def floor_of(room: str) -> int:
    """How high a room stands, 0 on the ground."""
    return FLOOR[room]


def arrows() -> Arrows:
    """The rooms that each room imports from, itself left out."""
    found: Arrows = {room_of(path): set() for path in MODULES}
    for path in MODULES:
        files = [_file(name) for name in imports(path) if name.partition(".")[0] == PACKAGE.name]
        found[room_of(path)] |= {room_of(file) for file in files if file}
    return {room: others - {room} for room, others in sorted(found.items())}


def circles(found: Arrows) -> list[set[str]]:
    """The rooms that import from each other, however many stand between them."""
    rings = {frozenset(_ring(found, room)) for room in found}
    return [set(ring) for ring in sorted(rings, key=sorted) if len(ring) > 1]


def climbing(found: Arrows) -> list[tuple[str, str]]:
    """The arrows that do not go down: to a higher floor, or to a room beside."""
    return [
        (room, other)
        for room, others in found.items()
        for other in sorted(others)
        if floor_of(other) >= floor_of(room)
    ]


def drawing() -> str:
    """The house as a Mermaid flowchart. An arrow that follows from two others is left out."""
    found = arrows()
    shown = _without_shortcuts(found)
    lines = ["```mermaid", "flowchart TB"]
    for level in range(len(FLOORS) - 1, -1, -1):
        rooms = [room for room in found if floor_of(room) == level and room not in ("__init__", "__main__")]
        if rooms:
            lines.append(f'  subgraph floor{level + 1}["floor {level + 1}"]')
            lines += [f'    {_node(room)}["{room}"]' for room in rooms]
            lines.append("  end")
    for room, others in shown.items():
        for other in sorted(others):
            if room not in shown[other]:
                lines.append(f"  {_node(room)} --> {_node(other)}")
            elif room < other:
                lines.append(f"  {_node(room)} <--> {_node(other)}")
    return "\n".join([*lines, "```", ""])


def drawn() -> str:
    """The picture that stands in docs/architecture.md."""
    return PAGE.read_text(encoding="utf-8").partition(_BEGIN)[2].partition(_END)[0]


def draw() -> None:
    """Put the picture of the code as it is into docs/architecture.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    assert begin and end, f"{PAGE} lacks the lines that enclose the picture"
    PAGE.write_text(before + begin + drawing() + end + after, encoding="utf-8")


def _absolute(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = path.relative_to(ROOT).parts[: -node.level]
    return ".".join([*parts, *([node.module] if node.module else [])])


@cache
def _file(name: str) -> Path | None:
    """The file of one of our modules; None for others, and for what is no module."""
    place = ROOT.joinpath(*name.split("."))
    files = [place / "__init__.py", place.with_suffix(".py")]
    return next((file for file in files if PACKAGE in file.parents and file.is_file()), None)


def _reached(found: Arrows, begin: Collection[str]) -> set[str]:
    """All rooms at the end of some way from the given ones, these included."""
    waiting, seen = list(begin), set(begin)
    while waiting:
        further = found[waiting.pop()] - seen
        seen |= further
        waiting += further
    return seen


def _ring(found: Arrows, room: str) -> set[str]:
    return {other for other in _reached(found, [room]) if room in _reached(found, [other])}


def _without_shortcuts(found: Arrows) -> Arrows:
    """Arrows inside a circle stay; of the others, those to a room that is not reached without
    them."""
    hidden = {"__init__", "__main__"}
    found = {room: others - hidden for room, others in found.items() if room not in hidden}
    return {room: set(_kept(found, room)) for room in found}


def _kept(found: Arrows, room: str) -> Iterator[str]:
    ring = _ring(found, room)
    leaving = {other for one in ring for other in found[one]} - ring
    for other in found[room]:
        target = _ring(found, other)
        if other in ring or other not in _reached(found, leaving - target):
            yield other


def _node(room: str) -> str:
    return room.replace("/", "__")


if __name__ == "__main__":
    draw()
    house = arrows()
    count = sum(map(len, house.values()))
    rings, climbs = circles(house), climbing(house)
    print(f"{len(house)} rooms, {count} arrows, circles: {rings}, arrows that do not go down: {climbs}")  # noqa: T201
