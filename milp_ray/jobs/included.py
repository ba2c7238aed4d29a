"""What ``--include`` sends along, and what it never does: other jobs can read what travels.

Of a folder everything travels but dot files (``.git``, ``.env``, …), keys and what looks like one,
run folders (users' memories, and the key of their aliases) and links. A secret that is named itself
is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from milp_ray.config.loading import looks_secret
from milp_ray.errors import MilpRayError
from milp_ray.layout import META, STUDY

_SECRET_NAME = re.compile(
    r"\.env(\..+)?|.+\.env|id_(rsa|dsa|ecdsa|ed25519)(_sk)?|alias\.key|\.?netrc|\.?pgpass|\.?pypirc|\.?npmrc"
    r"|\.?git-credentials|kubeconfig|auth_token"
    r"|.+\.(pem|key|p12|pfx|pkcs12|jks|keystore|kdbx|gpg|asc|ovpn|ppk|token|tfstate)"
    r"|(.*[._-])?(secrets?|credentials?|passwords?|passwd|token|apikey|api[_-]key)"
    r"(\.(txt|json|ya?ml|toml|ini|cfg|conf|csv))?"
    r"|(.*[._-])?service[._-]?account.*\.json",
    re.IGNORECASE,
)
_LONGEST = 1 << 20  # bytes of a file that are looked at: keys are short
_RUN = (META, STUDY)  # what makes a folder a run


class SubmissionError(MilpRayError):
    """A file to be submitted is missing, outside the folder, or too large."""


@dataclass
class Included:
    """What travels, and what was left out for a reason, both relative to the working folder."""

    files: list[Path] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)


def included(path: Path, root: Path) -> Included:
    """The file, or a folder's files, that travel.

    Args:
        path: relative to ``root``.
        root: the working folder.

    Raises:
        SubmissionError: it is a file that looks like a secret.
    """
    found = Included()
    whole = root / path
    if whole.is_file():
        refuse_secret(whole, f"--include {path}")
        found.files.append(path)
    else:
        _collect(whole, root, found)
    return found


def refuse_secret(file: Path, where: str) -> None:
    """Raise :class:`SubmissionError` for a file that looks like a secret, or holds one."""
    if reason := _secret(file):
        raise SubmissionError(
            reason,
            where=where,
            expected="files without secrets: every job of the cluster can read what travels",
            remedy="give the secret to the machines that need it (docs/security.md)",
        )


def below(path: Path, root: Path, pattern: str = "*") -> Iterator[Path]:
    """The files of a folder whose names match; no symbolic links, which may lead anywhere."""
    for file in sorted((root / path).rglob(pattern)):
        if file.is_file() and not file.is_symlink() and "__pycache__" not in file.parts:
            yield file.relative_to(root)


def _collect(folder: Path, root: Path, found: Included) -> None:
    for entry in sorted(folder.iterdir()):
        name = entry.relative_to(root)
        if entry.is_symlink() or entry.name == "__pycache__":
            continue
        if entry.name.startswith("."):
            found.left_out[name] = "a dot file"
        elif entry.is_dir():
            if all((entry / file).is_file() for file in _RUN):
                found.left_out[name] = "a run, with users' memories"
            else:
                _collect(entry, root, found)
        elif entry.is_file():
            if reason := _secret(entry):
                found.left_out[name] = reason
            else:
                found.files.append(name)


def _secret(file: Path) -> str:
    """Why a file looks like a secret; empty where it does not. Nothing of it is repeated."""
    if _SECRET_NAME.fullmatch(file.name):
        return "is called like a secret"
    with file.open("rb") as opened:
        start = opened.read(_LONGEST)
    return "holds something like a key or a password" if looks_secret(start.decode("latin-1")) else ""
