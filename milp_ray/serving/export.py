"""`milp-ray export`: a run's memories as an engine reads them, one folder each, in any number.

A memory is read, converted, checked by the engine's rules and written, one after the other: their
number takes no more memory. Its folder has the two files that engines read and nothing else, and
is named by the alias and the content, since engines never read a name again. An export that was
interrupted goes on by the same command. ``memories.jsonl`` says what is there.

Which form each engine needs is :mod:`milp_ray.serving.engines`'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from milp_ray.errors import Problem, RunFolderError, StorageError, StudyError
from milp_ray.ids import child
from milp_ray.layout import ADAPTER_CONFIG
from milp_ray.memory.adapter_files import file_contents, read_files
from milp_ray.memory.adapter_notes import NOTE
from milp_ray.memory.export import in_every_layer, portable_name, with_one_rank
from milp_ray.serving.engines import AdapterFiles, Engine, Served, find_engine, problems, study_problems
from milp_ray.serving.memories import MOST_NAMED, users_with_memory
from milp_ray.storage import (
    atomic_write,
    get_file,
    is_url,
    local_copy,
    location_of,
    mirror_at,
    names_in,
    reading,
    url_fault,
    write_folder,
    write_json,
    write_synced,
)
from milp_ray.study.run_folder import RunFolder

MARKER, MANIFEST = "export.json", "memories.jsonl"
FORMAT = 1
VERSION = 12  # hex digits of the content's digest in a name
_FLUSH = 200  # memories between two writings of the manifest

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Exported:
    """A line of the manifest.

    Attributes:
        name: of the memory's folder, and for the server.
        alias: of the user.
        version: digest of the two files, as in the name.
        rank: the largest one.
        bytes: of the two files.
        sha256: of both files together.
        source: of the run's own weights, by which a later export knows them.
        scores: of the final test, with the own memory, if there was one.
    """

    name: str
    alias: str
    version: str
    rank: int
    bytes: int
    sha256: str
    source: str
    scores: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Summary:
    """What an export came to.

    Attributes:
        place: folder or URL.
        memories: in it now.
        written: by this command.
        rank: of all of them, or the largest one.
        start: how a server is told to take them; "" where nothing needs to be said.
    """

    place: str
    memories: int
    written: int
    rank: int
    start: str


def export(
    run: Path | str,
    place: Path | str,
    engine: str,
    *,
    users: Sequence[str] = (),
    rank: int | None = None,
    base_name: str | None = None,
    notify: Say = lambda _: None,
) -> Summary:
    """Write memories for an engine, or go on with it.

    Args:
        run: the run folder, or its URL.
        place: a folder that is not there yet, is empty, or holds this very export; or its URL.
        engine: a name of :data:`~milp_ray.serving.engines.ENGINES`.
        users: aliases, or raw ids; none: all who have a memory.
        rank: that every memory is filled up to; None: the least that the engine serves and that
            holds the largest one. For an engine that reads ranks by layer: no filling up.
        base_name: what the server calls its base; None: its hub name, or its folder's.
        notify: is told what goes on.

    Raises:
        StudyError: the engine is unknown, or cannot serve these memories.
        RunFolderError: there is no run, or no memory, or something else is at ``place``.
        StorageError: a memory is damaged, or ``place`` cannot be written.
    """
    folder, known = RunFolder.open(run), find_engine(engine)
    root = _root(place)
    served = _served(folder, base_name, str(place))
    if refused := list(study_problems(known, served)):
        raise StudyError(f"export for {engine}", refused)
    aliases = users_with_memory(folder, users)
    ranks = {alias: _rank_of(folder, alias) for alias in aliases}
    wanted = _rank(known, ranks, rank)
    asked = {"format": FORMAT, "engine": engine, "rank": wanted, "base": served.base_name}
    _claim(root, asked | {"study": folder.study.name})
    done = {line.alias: line for line in _manifest(root)}
    there, written = names_in(root), 0
    if left := len(done):
        notify(f"{left} memories are there already")
    for number, alias in enumerate(aliases, 1):
        before = done.get(alias)
        if before is None or before.name not in there or before.source != _source(folder, alias):
            done[alias] = _write(folder, alias, root, known, served, wanted, there)
            written += 1
            if written % _FLUSH == 0:
                _write_manifest(root, done)
                notify(f"{number} of {len(aliases)} memories")
    _write_manifest(root, done)
    largest = wanted or max(ranks.values())
    start = known.start.format(base=served.base_name, rank=largest, place=location_of(root))
    return Summary(location_of(root), len(done), written, largest, start)


def _write(
    folder: RunFolder,
    alias: str,
    root: Path,
    engine: Engine,
    served: Served,
    rank: int | None,
    there: set[str],
) -> Exported:
    """Convert a memory, make sure that the engine serves it, and write it; its manifest's line."""
    with local_copy(folder.layout.memory(alias)) as source:
        config, tensors = read_files(source)
    if rank is not None:
        config, tensors = with_one_rank(config, tensors, rank)
    if engine.every_layer:
        config, tensors = in_every_layer(config, tensors, served.num_layers)
    contents = file_contents(
        config | {"base_model_name_or_path": served.base_name, "revision": None}, tensors
    )
    files = AdapterFiles.of(contents)
    if found := problems(engine, files, served):
        raise StudyError(f"export of {alias} for {engine.name}", found)
    digest = hashlib.sha256(b"".join(contents.values())).hexdigest()
    name = f"{alias}-{digest[:VERSION]}"

    def write(draft: Path) -> None:
        for file, content in contents.items():
            write_synced(draft / file, content)

    if name not in there:
        write_folder(child(root, name), write, commit_marker=ADAPTER_CONFIG)
        there.add(name)
    return Exported(
        name,
        alias,
        digest[:VERSION],
        files.rank,
        sum(map(len, contents.values())),
        digest,
        _source(folder, alias),
        _scores(folder, alias),
    )


def _served(folder: RunFolder, base_name: str | None, place: str) -> Served:
    """What the base is, from its configuration; of a folder without a library that reads it.

    Raises:
        ModelError: it cannot be read.
    """
    model = folder.study.model
    name, file = base_name or portable_name(model.path), Path(model.path) / "config.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = json.loads(file.read_text(encoding="utf-8"))
        layers = found["n_layer"] if "n_layer" in found else found["num_hidden_layers"]
        return Served(str(found["model_type"]), int(layers), name, place)
    from milp_ray.model.pretrained import load_architecture  # half a minute of imports

    architecture = load_architecture(model)
    return Served(architecture.model_type, architecture.num_layers, name, place)


def _root(place: Path | str) -> Path:
    """The folder that is written, which for a URL stands for it."""
    if is_url(place):
        if fault := url_fault(str(place)):
            raise StudyError("export", [Problem("destination", fault, "a folder, or a URL that can be used")])
        above, _, name = str(place).rstrip("/").rpartition("/")
        if above.endswith("/"):
            fact, remedy = "is a bucket as a whole", "add a folder's name"
            raise StudyError("export", [Problem("destination", fact, "a folder in it", remedy)])
        return child(mirror_at(above).root, name)
    return Path(place).expanduser().resolve()


def _claim(root: Path, asked: Mapping[str, object]) -> None:
    """Make sure that the place is free, or holds this export; then it is this one's.

    Raises:
        RunFolderError: something else is there.
        StorageError: it cannot be read or written.
    """
    with reading(root):
        there = names_in(root)
    if MARKER in there:
        with reading(root / MARKER):
            found = json.loads(get_file(root / MARKER))
        differing = sorted(name for name in {*found, *asked} if found.get(name) != asked.get(name))
        if differing:
            told = ", ".join(f"{name} {found.get(name)!r}" for name in differing)
            raise RunFolderError(
                f"another export is there: of {told}",
                where=location_of(root),
                expected=", ".join(f"{name} {asked.get(name)!r}" for name in differing),
                remedy="export to another place, or with the same settings",
            )
    elif there:
        raise RunFolderError(
            "there is something already where the memories should go",
            where=location_of(root),
            expected="a folder that is not there yet, is empty, or holds this export",
            remedy="name another place",
        )
    else:
        write_json(root / MARKER, dict(asked))


def _rank(engine: Engine, ranks: Mapping[str, int], asked: int | None) -> int | None:
    """The rank of all memories; None: each layer keeps its own.

    Raises:
        StudyError: the engine has no such rank, or memories have a larger one.
    """
    if asked is None:
        return engine.rank_for(max(ranks.values())) if engine.one_rank else None
    if over := sorted(alias for alias, rank in ranks.items() if rank > asked):
        names = ", ".join(over[:MOST_NAMED]) + (", …" if len(over) > MOST_NAMED else "")
        problem = Problem(
            "--rank",
            f"{len(over)} memories have a layer of a larger rank than {asked}: {names}",
            f"at least {max(ranks.values())}",
            "export with a larger rank, or leave these users out with --user",
        )
        raise StudyError("export", [problem])
    if engine.rank_for(asked) != asked:
        problem = Problem("--rank", f"{engine.version} cannot be set to {asked}", f"one of {engine.ranks}")
        raise StudyError("export", [problem])
    return asked


def _rank_of(folder: RunFolder, alias: str) -> int:
    """The largest rank of a layer, from a memory's configuration alone."""
    path = folder.layout.memory(alias) / ADAPTER_CONFIG
    with reading(path):
        config = json.loads(get_file(path))
    own = [config.get("rank_pattern", {}).get(name, config["r"]) for name in config["target_modules"]]
    return int(max(own))


def _source(folder: RunFolder, alias: str) -> str:
    """What tells a memory from an earlier one of the user's; "" where it says nothing of itself."""
    try:
        note: dict[str, Any] = json.loads(get_file(folder.layout.memory(alias) / NOTE))
        return str(note["weights_sha256"])
    except (OSError, StorageError, ValueError, KeyError):
        return ""


def _scores(folder: RunFolder, alias: str) -> dict[str, float | None]:
    try:
        found: dict[str, Any] = json.loads(get_file(folder.layout.scores(alias)))
        return dict(found["models"]["own"])
    except (OSError, StorageError, ValueError, KeyError):
        return {}


def _manifest(root: Path) -> list[Exported]:
    if MANIFEST not in names_in(root):
        return []
    with reading(root / MANIFEST):
        lines = get_file(root / MANIFEST).decode().splitlines()
    return [Exported(**json.loads(line)) for line in lines]


def _write_manifest(root: Path, done: Mapping[str, Exported]) -> None:
    text = "".join(json.dumps(asdict(done[alias]), allow_nan=False) + "\n" for alias in sorted(done))
    atomic_write(root / MANIFEST, lambda draft: draft.write_text(text, encoding="utf-8"))
