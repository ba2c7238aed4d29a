"""What an adapter says of itself: its placement, its user, and what its files must hold.

A file beside PEFT's two, which PEFT and other readers pass over. It is looked at whenever milp_ray
reads the adapter, so that files of two trainings, half a file, or another user's memory are not
taken for this one. Adapters that earlier versions wrote have none, and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import milp_ray
from milp_ray.errors import RunFolderError
from milp_ray.layout import ADAPTER_CONFIG

NOTE = "memory.json"
_WEIGHTS = "adapter_model.safetensors"
# Where the base lies is not what the adapter is: whoever moves a model may name its new place.
_NOT_CONTENT = ("base_model_name_or_path", "revision")


def note_of(folder: Path, placement: str, user: str) -> bytes:
    """The note of an adapter whose files are there.

    Args:
        folder: of the adapter.
        placement: its key.
        user: the alias whose texts it was trained on.
    """
    weights = (folder / _WEIGHTS).read_bytes()
    note = {
        "format": 1,
        "milp_ray": milp_ray.__version__,
        "user": user,
        "placement": placement,
        "weights_bytes": len(weights),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "config_sha256": _config_digest((folder / ADAPTER_CONFIG).read_bytes()),
    }
    return (json.dumps(note, indent=1) + "\n").encode()


def note_of_copy(folder: Path, source: Path) -> bytes | None:
    """The note of a copy whose files are there, made from its source's; None where that has none.

    Raises:
        RunFolderError: the source's note is damaged.
    """
    note = _read(source)
    return None if note is None else note_of(folder, str(note["placement"]), str(note["user"]))


def check_note(folder: Path, *, placement: str | None = None, user: str | None = None) -> None:
    """Make sure, by its note alone, that an adapter is the one meant; without one it passes.

    Args:
        folder: of the adapter; its weights need not be there.
        placement: the key that it must have; None for any.
        user: the alias that it must be of; None for any.

    Raises:
        RunFolderError: it is another one, or its note is damaged.
    """
    note = _read(folder)
    if note is None:
        return
    for what, wanted in (("placement", placement), ("user", user)):
        if wanted is not None and note.get(what) != wanted:
            raise _mismatch(folder, f"it is of {what} {note.get(what)}", f"{what} {wanted}")
    weights = folder / _WEIGHTS
    if weights.exists() and weights.stat().st_size != note["weights_bytes"]:
        fact = f"{_WEIGHTS} has {weights.stat().st_size} bytes"
        raise _mismatch(folder, fact, f"{note['weights_bytes']} bytes, as its {NOTE} says")


def noted_placement(folder: Path) -> str | None:
    """The key of the placement that an adapter says it is of; None where it says nothing.

    Raises:
        RunFolderError: its note is damaged.
    """
    note = _read(folder)
    return None if note is None else str(note["placement"])


def check_content(folder: Path, *, placement: str | None = None, user: str | None = None) -> None:
    """As :func:`check_note`, and make sure that the files are those that the note was written for.

    Raises:
        RunFolderError: see :func:`check_note`.
        OSError: a file cannot be read.
    """
    check_note(folder, placement=placement, user=user)
    note = _read(folder)
    if note is None:
        return
    found = {
        _WEIGHTS: hashlib.sha256((folder / _WEIGHTS).read_bytes()).hexdigest() == note["weights_sha256"],
        ADAPTER_CONFIG: _config_digest((folder / ADAPTER_CONFIG).read_bytes()) == note["config_sha256"],
    }
    if changed := [name for name, same in found.items() if not same]:
        raise _mismatch(folder, f"{' and '.join(changed)} changed since", f"what its {NOTE} was written for")


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        note = None
    keys = {"placement", "user", "weights_bytes", "weights_sha256", "config_sha256"}
    if not isinstance(note, dict) or not keys <= note.keys():
        raise _mismatch(folder, f"its {NOTE} is damaged", "what milp_ray wrote there")
    return note


def _config_digest(text: bytes) -> str:
    try:
        values = json.loads(text)
        kept = {name: value for name, value in values.items() if name not in _NOT_CONTENT}
    except (ValueError, AttributeError):
        return "unreadable"
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _mismatch(folder: Path, fact: str, expected: str) -> RunFolderError:
    return RunFolderError(
        f"an adapter is not the one that is meant: {fact}",
        where=f"{folder.parent.name}/{folder.name}",
        expected=expected,
        remedy="restore its folder from a backup; or delete it, and a final memory is trained again by: "
        "milp-ray resume RUN",
    )
