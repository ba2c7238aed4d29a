"""From a study file and command-line overrides to a :class:`Study`, or to all its errors at once.

Every error names the path in the file, what was found, what was expected and, for an unknown key,
the nearest valid one. Whether the model, the data and the memory space exist and fit together is
`milp-ray check`'s part.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from milp_ray.config import yamltree
from milp_ray.config.comparison import Comparison
from milp_ray.config.models import DataSettings, Study
from milp_ray.config.settings import Settings
from milp_ray.config.yamltree import KeyPath, Tree, dotted
from milp_ray.errors import Problem, StudyError
from milp_ray.storage import has_credentials, is_url

# Values of these paths are never repeated in an error: they may be raw user ids.
_PRIVATE = re.compile(r"(?:data|datasets\.[^.]+)\.users\b")
_EXTENDS = "extends"
# Two keys for one thing: the one on the command line wins over the other in the file.
_SAME_THING = {("search", "sampler"): "surrogate", ("search", "surrogate"): "sampler"}
Loaded = TypeVar("Loaded", bound=Settings)
# Keys of AWS, Hugging Face, GitHub, GitLab, Slack, Google and of the "sk-" kind; private keys.
_SECRET = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{30,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bglpat-[\w-]{20,}"
    r"|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{35}|\bsk-[A-Za-z0-9_-]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY"
)


def load_study(path: Path | str, overrides: Sequence[str] = ()) -> Study:
    """Read and validate a study file.

    A file may say ``extends: other.yaml`` (beside it): it then takes over what it does not say
    itself.

    Args:
        path: the YAML file.
        overrides: ``section.key=value`` strings; values are YAML (``trial.stages=[inject,
            instruct]``).

    Raises:
        StudyError: with every problem of the file and of the overrides.
    """
    return _load(Path(path), overrides, Study)


def load_comparison(path: Path | str, overrides: Sequence[str] = ()) -> Comparison:
    """Read and validate a comparison file, as :func:`load_study` does a study file.

    Raises:
        StudyError: with every problem of the file and of the overrides.
    """
    return _load(Path(path), overrides, Comparison)


def load_job_file(path: Path | str, overrides: Sequence[str] = ()) -> Study | Comparison:
    """Read what a job is given: a comparison file, by its key ``datasets``, or else a study file.

    Raises:
        StudyError: with every problem of the file and of the overrides.
    """
    tree = _read_tree(Path(path))
    is_comparison = isinstance(tree.value, dict) and "datasets" in tree.value
    if is_comparison:
        return _overridden(tree, path, overrides, Comparison)
    return _overridden(tree, path, overrides, Study)


def data_settings(path: str, overrides: Sequence[str] = ()) -> DataSettings:
    """The data settings of a file without a study, with overrides as a study's (``data.format=…``).

    Raises:
        StudyError: with every problem of the overrides.
    """
    tree = Tree({"name": "data", "model": {"path": "none"}, "data": {"path": path}})
    for override in overrides:
        _override(tree, override)
    return _validate(tree, path, Study).data


def study_files(path: Path | str) -> list[Path]:
    """The study file and those that it extends, nearest first.

    Raises:
        StudyError: one of them cannot be read.
    """
    files: list[Path] = []
    _read_tree(Path(path), files)
    return files


def dump_study(study: Study) -> str:
    """The study as YAML with every value spelled out; :func:`load_study` reads it back equal."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def resolved(study: Study) -> Study:
    """The study with paths made absolute, so that it means the same from any working directory.

    URLs stay as they are. A model path that is no existing folder is left alone: it is a hub name.
    """
    model = Path(study.model.path)
    changes: dict[str, BaseModel] = {
        "data": study.data.model_copy(
            update={
                "path": _absolute(study.data.path),
                "files": {name: _absolute(path) for name, path in study.data.files.items()},
                "alias_key": study.data.alias_key and _absolute(study.data.alias_key),
            }
        ),
        "storage": study.storage.model_copy(update={"path": _absolute(study.storage.path)}),
    }
    if model.expanduser().exists():
        changes["model"] = study.model.model_copy(update={"path": str(model.expanduser().resolve())})
    return study.model_copy(update=changes)


def _load(path: Path, overrides: Sequence[str], root: type[Loaded]) -> Loaded:
    return _overridden(_read_tree(path), path, overrides, root)


def _overridden(tree: Tree, path: Path | str, overrides: Sequence[str], root: type[Loaded]) -> Loaded:
    for override in overrides:
        _override(tree, override)
    return _validate(tree, str(path), root)


def _read_tree(path: Path, files: list[Path] | None = None) -> Tree:
    """The file's tree over those that it extends; files read are added to ``files``."""
    files = [] if files is None else files
    files.append(path)
    tree = yamltree.parse(_read(path))
    if not isinstance(tree.value, dict) or _EXTENDS not in tree.value:
        return tree
    name, where = tree.value.pop(_EXTENDS), f"line {tree.lines[(_EXTENDS,)]}, {_EXTENDS}"
    if not isinstance(name, str) or not name:
        tree.problems.append(Problem(where, "is not a file name", "a study file, relative to this one"))
        return tree
    parent = path.parent / name
    if any(parent.resolve() == file.resolve() for file in files):
        tree.problems.append(Problem(where, f"{name} extends this file in turn", "a chain with an end"))
        return tree
    try:
        tree.inherit(_read_tree(parent, files), name)
    except StudyError as error:  # no such file, and the like
        problem = error.problems[0]
        tree.problems.append(Problem(where, f"{name}: {problem.fact}", problem.expected, "check the path"))
    return tree


def _absolute(path: str) -> str:
    return path.rstrip("/") if is_url(path) else str(Path(path).expanduser().resolve())


def _read(path: Path) -> str:
    def fault(fact: str, expected: str = "", remedy: str = "") -> StudyError:
        return StudyError(str(path), [Problem("", fact, expected, remedy)])

    try:
        if path.is_dir():
            raise fault("is a folder", "a YAML study file", "name the file inside it")
        with path.open("rb") as file:
            raw = file.read(yamltree.MAX_BYTES + 1)
    except FileNotFoundError:
        remedy = "check the path, or write a first study with: milp-ray init study.yaml"
        raise fault("no such file", "a YAML study file", remedy) from None
    except OSError as error:
        raise fault(f"cannot be read: {error.strerror}") from None
    if len(raw) > yamltree.MAX_BYTES:
        raise fault("is larger than 1 MiB", "a study file of a few kilobytes", "is this a data file?")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise fault(f"byte {error.start} is not UTF-8", "UTF-8 text", "save the file as UTF-8") from None


def _override(tree: Tree, text: str) -> None:
    where = f"override {text.partition('=')[0] or text!r}"
    match = re.fullmatch(r"([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)=(.*)", text, re.DOTALL)
    if match is None:
        tree.problems.append(Problem(where, "is not an override", "section.key=value"))
        return
    *parents, last = match.group(1).split(".")
    parsed = yamltree.parse(match.group(2))
    if parsed.problems:
        tree.problems.extend(Problem(where, p.fact, p.expected, p.remedy) for p in parsed.problems)
        return
    if tree.value is None:
        tree.value = {}
    node = tree.value
    for depth, part in enumerate(parents, 1):
        if not isinstance(node, dict):
            break
        child = node.get(part)
        if child is None:
            child = node[part] = {}
            tree.lines.setdefault(tuple(parents[:depth]), 0)
        node = child
    if not isinstance(node, dict):
        tree.problems.append(Problem(where, "goes into something that has no keys", "section.key=value"))
        return
    node[last] = parsed.value
    rival = _SAME_THING.get((*parents, last))
    if rival is not None and tree.lines.get((*parents, rival)) != 0:
        node.pop(rival, None)
    found = (path for path, _ in yamltree.scalars(parsed.value, (*parents, last)))
    for path in [*found, (*parents, last)]:
        tree.lines[path] = 0  # 0: from the command line
        tree.files.pop(path, None)


def _validate(tree: Tree, source: str, root: type[Loaded]) -> Loaded:
    if not isinstance(tree.value, dict):
        if not tree.problems:
            fact = "is empty" if tree.value is None else "is not a mapping of sections"
            remedy = "write a first study with: milp-ray init study.yaml"
            tree.problems.append(Problem("", fact, "sections such as 'model:' and 'data:'", remedy))
        raise StudyError(source, tree.problems)
    if secrets := list(_secrets(tree)):
        raise StudyError(source, [*tree.problems, *secrets])
    try:
        loaded = root.model_validate_json(json.dumps(tree.value))
    except ValidationError as error:
        tree.problems.extend(_problems(error.errors(include_url=False), tree, root))
    except (UnicodeEncodeError, ValueError):
        tree.problems.append(Problem("", "holds text that is not valid Unicode", "UTF-8 text"))
    if tree.problems:
        raise StudyError(source, tree.problems)
    return loaded


def check_no_ids(overrides: Sequence[str]) -> None:
    """For command lines that reach a cluster, where whoever may submit jobs can read them.

    Ray keeps them, the one of a driver too, in its job table; the dashboard and `ps` show them. How
    many users is no secret; which ones is.

    Raises:
        StudyError: an override names users by their ids, which it does not repeat.
    """
    problems = [
        Problem(
            f"override {where}",
            "a command line can be read on the cluster and in its dashboard, and user ids must not be",
            "user ids in the study file only",
            f"write {where} into the file",
        )
        for text in overrides
        for where in _users_named(text)
    ]
    if problems:
        raise StudyError("command line", problems)


def _users_named(override: str) -> Iterator[str]:
    """Where an override names users by their ids, of a study or of a comparison's data sets."""
    key, _, text = override.partition("=")
    first, *rest = key.split(".")
    value = yamltree.parse(text).value
    for part in reversed(rest):
        value = {part: value}
    sections = {"data": value} if first == "data" else {}
    if first == "datasets" and isinstance(value, dict):
        sections = {f"datasets.{name}": section for name, section in value.items()}
    for where, section in sections.items():
        users = section.get("users") if isinstance(section, dict) else None
        if users is not None and type(users) is not int:
            yield f"{where}.users"


def looks_secret(text: str) -> bool:
    """Whether a text holds something of the shape of a well-known kind of key."""
    return _SECRET.search(text) is not None


def _secrets(tree: Tree) -> Iterator[Problem]:
    """Values that look like keys; they are not repeated, since a study is sent around."""
    for path, value in yamltree.scalars(tree.value):
        if isinstance(value, str) and looks_secret(value):
            yield Problem(
                _where(path, tree),
                "looks like a key or a password (not shown)",
                "no secrets in a study",
                "name a file that holds it, or give it to the machines that need it, and change this one",
            )


def _problems(errors: Iterable[ErrorDetails], tree: Tree, root: type[Settings]) -> list[Problem]:
    merged: dict[KeyPath, tuple[str, list[str]]] = {}
    out: list[Problem] = []
    for error in errors:
        path = _field_path(error["loc"], root)
        if error["type"] == "extra_forbidden":
            out.append(_unknown_key(path, tree, root))
        elif error["type"] == "missing":
            about = _describe(path, root)
            out.append(Problem(_where(path, tree), "is missing", about, f"add '{path[-1]}:'"))
        else:
            got, expected = merged.setdefault(path, (_got(error, path, tree), []))
            expected.append(_expected(error))
    faulty = {problem.where for problem in tree.problems}
    for path, (got, expected) in merged.items():
        if not got:  # a section whose values do not fit together: what is said of it is the fact
            out.append(Problem(_where(path, tree), "; ".join(expected)))
            continue
        if _where(path, tree) in faulty:  # the YAML itself was at fault there, and that is said already
            continue
        wanted = " or ".join(dict.fromkeys(expected))
        about = _describe(path, root)
        out.append(Problem(_where(path, tree), got, f"{wanted} ({about})" if about else wanted))
    return out


def _expected(error: ErrorDetails) -> str:
    text = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return {
        "string_too_short": "a text that is not empty",
        "tuple_type": "a list",
        "model_type": "a section with keys of its own",
        "too_short": "at least one item",
    }.get(error["type"], text)


def _where(path: KeyPath, tree: Tree) -> str:
    known = next((path[:i] for i in range(len(path), -1, -1) if path[:i] in tree.lines), None)
    prefix = ""
    if known is not None:
        file = tree.files.get(known)
        prefix = f"line {tree.lines[known]}{f' of {file}' if file else ''}, "
        prefix = "command line, " if tree.lines[known] == 0 else prefix
    return f"{prefix}{dotted(path)}" if path else "study"


def _got(error: ErrorDetails, path: KeyPath, tree: Tree) -> str:
    if _PRIVATE.match(dotted(path)):
        return f"a value of type {type(error['input']).__name__} (not shown: it may be a user id)"
    value = error["input"]
    if isinstance(value, str) and has_credentials(value):
        return "a URL of a kind in which credentials stand (not shown)"
    if isinstance(value, dict) and error["type"] == "value_error":
        return ""
    shown = json.dumps(value, default=str)
    return f"got {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _unknown_key(path: KeyPath, tree: Tree, root: type[Settings]) -> Problem:
    section = _section(_type_at(path[:-1], root))
    valid = sorted(section.model_fields) if section else []
    if section is root:
        valid.append(_EXTENDS)
    # A key that stands one level off (`epochs:` at the top) is a common slip: look for its section
    # first.
    homes = [
        f"{name}.{path[-1]}"
        for name, field in root.model_fields.items()
        if path[-1] not in valid and (model := _section(field.annotation)) and path[-1] in model.model_fields
    ]
    close = homes or difflib.get_close_matches(str(path[-1]), valid, n=1, cutoff=0.5)
    remedy = "did you mean " + " or ".join(f"'{name}'" for name in close) + "?" if close else ""
    return Problem(_where(path, tree), "unknown key", "one of " + ", ".join(valid), remedy)


def _describe(path: KeyPath, root: type[Settings]) -> str:
    parent = _section(_type_at(path[:-1], root))
    if parent is None or not path or not isinstance(path[-1], str):
        return ""
    info = parent.model_fields.get(path[-1])
    return info.description or "" if info else ""


def _type_at(path: Sequence[str | int], root: object) -> object:
    for part in path:
        root = _below(root, part)
    return root


def _below(kind: object, part: str | int) -> object:
    """The type of what stands under a key of a section or a mapping; None of others."""
    if section := _section(kind):
        info = section.model_fields.get(str(part))
        return info.annotation if info else None
    return typing.get_args(kind)[1] if typing.get_origin(kind) is dict else None


def _section(kind: object) -> type[BaseModel] | None:
    """The class of a section, of which a type may be the union with something else."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next((m for a in typing.get_args(kind) if (m := _section(a))), None)
    return None


def _field_path(loc: Sequence[str | int], root: type[Settings]) -> KeyPath:
    """The location without the names of union branches that pydantic mixes in."""
    path: list[str | int] = []
    kind: object = root
    for index, part in enumerate(loc):
        if part == "[key]":  # what is wrong with a mapping's key stands under the key
            break
        if _section(kind) or typing.get_origin(kind) is dict:
            path.append(part)
            kind = _below(kind, part)
            if kind is None:
                break
        elif isinstance(part, int) and index == len(loc) - 1:
            path.append(part)
    return tuple(path)
