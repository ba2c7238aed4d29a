"""What travels with a job, and the name that follows from it.

Only this: the job's script, the study file with those it extends, the ``milp_ray`` package where
the working folder is a checkout of it, and what is asked for by name. Data, models and results stay
where they are: a study names them by a path or a URL that the cluster sees.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from milp_ray.config.comparison import Comparison
from milp_ray.config.loading import check_no_ids, load_job_file, study_files
from milp_ray.config.models import Study
from milp_ray.errors import Problem, StudyError
from milp_ray.jobs.included import Included, SubmissionError, below, included, refuse_secret
from milp_ray.storage import is_url

MAX_BYTES = 20 << 20
BUILT_IN = ("search", "final", "compare")  # jobs without a script, see milp_ray.jobs.entry
_DIGEST_LENGTH = 10
_SHOWN = 5
_OWN_FILES = ("*.py", "templates/*")  # of milp_ray; setup.cfg installs the second kind
_OWN_NAMES = (
    "milp_ray",
    "jobs",
    "test",
    "tests",
)  # a checkout's; tests, which others install, nobody imports
IDS_TRAVEL = (
    "data.users (datasets.NAME.users) names users by their ids in a file that travels with the job: it will "
    "lie in Ray's files on the cluster, where every other job can read it (it can also be a number, or null: "
    "all)"
)
_TEXTS_TRAVEL = (
    "data.path travels with the job: users' texts will lie in Ray's files on the cluster, where every other "
    "job can read them"
)


@dataclass(frozen=True)
class Package:
    """A job ready to be sent.

    Attributes:
        study: or comparison, with its overrides.
        files: relative to ``root``, sorted.
        entrypoint: the command that the cluster runs.
        environment: variables of the job.
        digest: of all of these; the same job has the same one.
        warnings: what whoever submits it should know.
    """

    root: Path
    study: Study | Comparison
    files: tuple[Path, ...]
    entrypoint: str
    environment: Mapping[str, str]
    digest: str
    warnings: tuple[str, ...] = ()

    def copy_to(self, folder: Path) -> None:
        """Lay the files out in an empty folder."""
        for file in self.files:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / file, target)


def pack(
    job: str,
    study: Path,
    overrides: Sequence[str] = (),
    *,
    root: Path | None = None,
    include: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Package:
    """Collect a job's files, and check that nothing else is needed.

    Args:
        job: a script below ``root``, or the name of a built-in job (search, final, compare).
        study: file, or a comparison file, below ``root``.
        overrides: ``section.key=value``.
        root: the working folder, which relative paths are relative to; None: the current one.
        include: further files or folders below ``root``; see :mod:`milp_ray.jobs.included`.
        environment: variables of the job.

    Raises:
        StudyError: the study is wrong, or names a relative path that does not travel.
        SubmissionError: a file is missing or outside ``root``, or it is more than
            :data:`MAX_BYTES`.
    """
    root = (root or Path.cwd()).resolve()
    if not root.is_dir():
        raise SubmissionError("no such folder", where=f"--working-dir {root}", expected="a folder")
    check_no_ids(overrides)
    loaded = load_job_file(root / study, overrides)
    chain = [
        _inside(file, root, "the study, and files that it extends") for file in study_files(root / study)
    ]
    built_in = job in BUILT_IN and not (root / job).is_file()
    script = [] if built_in else [_script(job, root)]
    extra = [_included(name, root) for name in include]
    code = own_files(root) if (root / "milp_ray" / "__init__.py").exists() else []
    files = tuple(sorted({*chain, *script, *code, *(file for found in extra for file in found.files)}))
    _check_modules(files, root)
    _check_size(files, root)
    _check_paths(loaded, root, files)
    command = ["python", "-m", "milp_ray.jobs", job] if built_in else ["python", str(script[0])]
    entrypoint = shlex.join([*command, str(chain[0]), *overrides])
    environment = environment or {}
    digest = _digest(files, root, entrypoint, environment)
    warnings = tuple(_warnings(loaded, files, root, extra))
    return Package(root, loaded, files, entrypoint, environment, digest, warnings)


def own_files(root: Path) -> list[Path]:
    """What milp_ray consists of in a checkout: modules, and what is installed beside them."""
    return [file for pattern in _OWN_FILES for file in below(Path("milp_ray"), root, pattern)]


def _warnings(
    study: Study | Comparison, files: Sequence[Path], root: Path, extra: Sequence[Included]
) -> Iterator[str]:
    """What of users travels, and what stays here though it is below what was to travel."""
    sections = study.data_sections.values()
    data = [path for data in sections for path in (data.path, *data.files.values()) if not is_url(path)]
    if {(root / Path(path).expanduser()).resolve() for path in data} & {root / file for file in files}:
        yield _TEXTS_TRAVEL
    if any(isinstance(data.users, tuple) for data in sections):
        yield IDS_TRAVEL
    left_out = {path: reason for found in extra for path, reason in found.left_out.items()}
    if left_out:
        shown = [f"{path} ({reason})" for path, reason in list(left_out.items())[:_SHOWN]]
        more = len(left_out) - len(shown)
        yield f"does not travel: {', '.join(shown)}{f' and {more} more' if more else ''}"


def _script(job: str, root: Path) -> Path:
    names = ", ".join(BUILT_IN)
    script = _inside(Path(job), root, f"a script, or one of {names} for a job without one")
    if not (root / script).is_file():
        raise SubmissionError("is a folder", where=job, expected=f"a script, or one of {names}")
    refuse_secret(root / script, job)
    return script


def _included(name: str, root: Path) -> Included:
    found = included(_inside(Path(name), root, "a file or folder to include"), root)
    if not found.files:
        expected = "files; links, dot files, runs and what looks like a secret are left out"
        raise SubmissionError("nothing in it can travel", where=f"--include {name}", expected=expected)
    return found


def _inside(path: Path, root: Path, expected: str) -> Path:
    """``path``, relative to ``root`` or absolute, as relative to ``root``."""
    whole = (root / path).resolve()
    if not whole.exists():
        raise SubmissionError(
            "no such file", where=str(path), expected=expected, remedy=f"it is looked for in {root}"
        )
    if not whole.is_relative_to(root):
        raise SubmissionError(
            f"is outside the working folder {root}",
            where=str(path),
            expected="files that can travel with the job",
            remedy="submit from a folder above it, or name that one with --working-dir",
        )
    return whole.relative_to(root)


def _check_modules(files: Sequence[Path], root: Path) -> None:
    """Ray puts the folder in front of its workers' import path, before it imports anything itself.

    Raises:
        SubmissionError: a module in it is called as one of Python's or of an installed package.
    """
    elsewhere = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != root]
    shadows = {}
    for file in files:
        package = len(file.parts) == 2 and file.name == "__init__.py"
        name = file.parts[0] if package else file.stem
        if name in _OWN_NAMES or not (package or (len(file.parts) == 1 and file.suffix == ".py")):
            continue
        spec = PathFinder.find_spec(name, elsewhere)
        if name in sys.stdlib_module_names or (spec is not None and spec.origin is not None):
            shadows[file] = name
    if shadows:
        raise SubmissionError(
            f"{', '.join(map(str, shadows))} would stand for what Python or a package calls so",
            where=str(root),
            expected="modules with names of their own",
            remedy="rename them, or leave them out",
        )


def _check_size(files: Sequence[Path], root: Path) -> None:
    sizes = {file: (root / file).stat().st_size for file in files}
    if sum(sizes.values()) <= MAX_BYTES:
        return
    largest = sorted(sizes, key=lambda file: -sizes[file])[:3]
    raise SubmissionError(
        f"the job's files are {sum(sizes.values()) / 2**20:.0f} MiB; the largest: "
        + ", ".join(f"{file} ({sizes[file] / 2**20:.1f} MiB)" for file in largest),
        where=str(root),
        expected=f"at most {MAX_BYTES >> 20} MiB: code and study files",
        remedy="put data and models on storage that the cluster sees, and name them by path or URL",
    )


def _check_paths(study: Study | Comparison, root: Path, files: Sequence[Path]) -> None:
    """Relative paths mean the working folder on the cluster, where only ``files`` are."""
    travelling = {whole for file in files for whole in (file, *file.parents)} - {Path()}
    problems = []
    models = {f"{where}.path": model.path for where, model in study.model_sections.items()}
    for where, path in (_read(study) | models).items():
        inside = Path(os.path.normpath(path)) in travelling
        # A relative model path that is no folder here is a hub name.
        if _is_relative(path) and not inside and (where not in models or (root / path).exists()):
            fact = f"{path!r} does not travel with the job"
            remedy = "put it where the cluster sees it, and name it by that"
            problems.append(Problem(where, fact, "an absolute path or a URL", remedy))
    for where, path in study.key_settings.items():
        if _is_relative(path):
            fact, remedy = "a key does not travel with a job", "put it where the job can read it, mode 0600"
            problems.append(Problem(where, fact, "an absolute path on the cluster", remedy))
    if _is_relative(study.storage.path):
        problems.append(storage_problem(study.storage.path))
    if problems:
        raise StudyError("the study of a job", problems)


def _read(study: Study | Comparison) -> dict[str, str]:
    """Files and URLs of users' data, by their places in the file."""
    found = {}
    for where, data in study.data_sections.items():
        found[where if where.endswith(".background") else f"{where}.path"] = data.path
        found |= {f"{where}.files.{name}": path for name, path in data.files.items()}
    return found


def storage_problem(path: str) -> Problem:
    """What is wrong with a run folder inside the folder that a job runs in."""
    return Problem(
        "storage.path",
        f"{path!r} is inside the job's working folder, which is deleted with the job",
        "an absolute path that all nodes share, or a URL",
        "set it in the study, or add to the command: storage.path=/shared/runs",
    )


def _is_relative(path: str) -> bool:
    return not is_url(path) and not Path(path).expanduser().is_absolute()


def _digest(files: Sequence[Path], root: Path, entrypoint: str, environment: Mapping[str, str]) -> str:
    total = hashlib.sha256(entrypoint.encode())
    for name, value in sorted(environment.items()):
        total.update(f"\0{name}={value}".encode())
    for file in files:
        content = (root / file).read_bytes()
        total.update(f"\0{file.as_posix()}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()[:_DIGEST_LENGTH]
