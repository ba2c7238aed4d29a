"""Strict YAML: one document to plain Python values, with all faults of the file collected.

Refused: duplicate keys, anchors and aliases (a few lines of them can expand to gigabytes), tags,
keys that are not strings, NaN and infinity, files over 1 MiB, nesting over 32 levels. Scalars
follow YAML 1.2's core schema, in which ``1e-4`` is a number and ``on``/``yes`` are strings;
PyYAML's own loader says otherwise. What a *study* may contain is not this module's business: see
:mod:`milp_ray.config.loading`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from milp_ray.errors import Problem

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]
KeyPath = tuple[str | int, ...]

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

# What PyYAML gives to values that carry no tag of their own.
_PLAIN_TAGS = {"map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value"}
_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass
class Tree:
    """The values of a document, the line of every key path, and the problems met on the way.

    ``files`` names the file of those paths that stand in another one than the document itself.
    """

    value: Value = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    files: dict[KeyPath, str] = field(default_factory=dict)

    def inherit(self, other: Tree, name: str) -> None:
        """Take from ``other``, read from the file ``name``, whatever this tree does not say itself.

        Mappings are merged key by key; anything else, lists too, is replaced as a whole.
        """
        self.problems.extend(
            Problem(f"{name}, {p.where}" if p.where else name, p.fact, p.expected, p.remedy)
            for p in other.problems
        )
        if isinstance(self.value, dict) and isinstance(other.value, dict):
            self.value = _merged(self.value, other.value)
        elif self.value is None:
            self.value = other.value
        for path, line in other.lines.items():
            if path not in self.lines:
                self.lines[path] = line
                self.files[path] = other.files.get(path, name)


def _merged(over: dict[str, Value], under: dict[str, Value]) -> dict[str, Value]:
    """In the order of ``under``, with what only ``over`` has behind it."""
    out = dict(under)
    for key, value in over.items():
        below = out.get(key)
        out[key] = _merged(value, below) if isinstance(value, dict) and isinstance(below, dict) else value
    return out


def dotted(path: KeyPath) -> str:
    """``("data", "users", 0)`` as ``data.users[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def scalar(text: str) -> Value:
    """A plain (unquoted) scalar by YAML 1.2's core schema; NaN and infinity come back as floats."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if _INT.fullmatch(text):
        return int(text.replace("_", "")) if len(text) < 100 else text
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return math.nan if "nan" in text.lower() else math.inf
    return text


def parse(text: str) -> Tree:
    """Parse one YAML document; faults are in ``problems``, what could be read in ``value``."""
    tree = Tree()
    try:
        aliases = [
            event for event in yaml.parse(text, Loader=yaml.SafeLoader) if isinstance(event, yaml.AliasEvent)
        ]
        if aliases:
            tree.problems.extend(
                Problem(
                    _line(event.start_mark),
                    f"alias *{event.anchor}",
                    "no anchors and aliases: they can expand without bound",
                    "write the value out",
                )
                for event in aliases[:5]
            )
            return tree
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{_line(mark)}, column {mark.column + 1}" if mark else ""
        tree.problems.append(Problem(where, f"not well-formed YAML: {error.problem or error.context}"))
        return tree
    except (yaml.YAMLError, RecursionError) as error:
        kind = "nested too deeply" if isinstance(error, RecursionError) else "not well-formed YAML"
        tree.problems.append(Problem("", f"{kind}: {str(error).splitlines()[0][:120]}"))
        return tree
    if root is not None:
        tree.value = _build(root, (), tree)
    return tree


def _build(node: yaml.Node, path: KeyPath, tree: Tree) -> Value:
    where = _where(node, path)
    tree.lines[path] = node.start_mark.line + 1
    if len(path) > MAX_DEPTH:
        tree.problems.append(Problem(where, "nested too deeply", f"at most {MAX_DEPTH} levels"))
        return None
    if node.tag.removeprefix("tag:yaml.org,2002:") not in _PLAIN_TAGS:
        tree.problems.append(Problem(where, f"tag {node.tag}", "plain values without tags"))
        return None
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, tree)
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, index), tree) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.ScalarNode):
        return None
    value = scalar(node.value) if node.style is None else str(node.value)
    if isinstance(value, float) and not math.isfinite(value):
        tree.problems.append(Problem(where, f"{node.value} is not a finite number", "a finite number"))
        return None
    return value


def _mapping(node: yaml.MappingNode, path: KeyPath, tree: Tree) -> dict[str, Value]:
    out: dict[str, Value] = {}
    for key_node, value_node in node.value:
        where = _where(key_node, path)
        if not isinstance(key_node, yaml.ScalarNode):
            tree.problems.append(Problem(where, "a key that is not a string", "a plain key"))
            continue
        key = str(key_node.value)
        here = (*path, key)
        if key in out:
            tree.problems.append(
                Problem(
                    _where(key_node, here),
                    f"key given twice (first on line {tree.lines[here]})",
                    "each key once",
                    "remove one of the two",
                )
            )
            continue
        out[key] = _build(value_node, here, tree)
        tree.lines[here] = key_node.start_mark.line + 1
    return out


def _line(mark: object) -> str:
    return f"line {getattr(mark, 'line', -1) + 1}"


def _where(node: yaml.Node, path: KeyPath) -> str:
    line = _line(node.start_mark)
    return f"{line}, {dotted(path)}" if path else line


def scalars(value: Value, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Value]]:
    """All scalars below ``value``, with their key paths."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from scalars(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from scalars(item, (*path, index))
    else:
        yield path, value
