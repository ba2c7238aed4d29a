"""Which driver's session a run is in: workers of earlier sessions publish nothing more.

A driver that takes a run over cannot end the workers of the one before it, which may be on any
node. It writes a session of its own beside the run's first files, and every worker knows the
session that started it: before anything of a worker's becomes visible, the two are compared. What
is under way at that very moment is not recalled. That there is one driver at a time is the lock's
and the lease's to see to.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from milp_ray.errors import RunBusyError, StorageError
from milp_ray.layout import SESSION
from milp_ray.storage.folder_lock import ensure_held
from milp_ray.storage.local import storage_error
from milp_ray.storage.mirror import location_of, mirror_of

# Of this process, which works for one session of a run: root of the run -> id of the session.
_mine: dict[Path, str] = {}


@dataclass(frozen=True)
class Session:
    """A driver's work on a run, for as long as it holds the run. ``number`` counts from 1."""

    id: str
    number: int

    def to_plain(self) -> dict[str, object]:
        """As JSON values, for :data:`SESSION`."""
        return {"id": self.id, "number": self.number}


def next_session(root: Path) -> Session:
    """The session after the one that a run was in last, not yet written.

    Raises:
        StorageError: the run cannot be read.
    """
    before = _session_of(root)
    return Session(secrets.token_hex(8), before.number + 1 if before else 1)


def publish_for(root: Path, session: str) -> None:
    """Have what this process writes below a run count for one session only; "": for any."""
    if session:
        _mine[root] = session
    else:
        _mine.pop(root, None)


def check_session(path: Path) -> None:
    """To be called right before something becomes visible in a run, or goes.

    Raises:
        RunBusyError: the run is in another session than the one that this process works for, or was
            this process's own and is not any more.
        StorageError: that cannot be found out.
    """
    ensure_held(path)
    for root, mine in _mine.items():
        if not path.is_relative_to(root):
            continue
        found = _session_of(root)
        if found is None or found.id != mine:
            raise RunBusyError(
                "another milp-ray took over this run, so a worker of the one before writes nothing more",
                where=location_of(root),
                expected="the session that started this worker",
                remedy="let the other one work, or stop it and resume",
            )


def _session_of(root: Path) -> Session | None:
    """The session that a run is in; None for one that was never in any."""
    path = root / SESSION
    try:
        mirror = mirror_of(path)
        content = path.read_bytes() if mirror is None else mirror.objects.get(mirror.name(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, path) from error
    with contextlib.suppress(ValueError, KeyError, TypeError):
        plain = json.loads(content)
        return Session(str(plain["id"]), int(plain["number"]))
    raise StorageError(
        "a file is damaged",
        where=location_of(path),
        expected="what milp-ray wrote there",
        remedy="make sure that no milp-ray works on the run, then delete the file and resume",
    )
