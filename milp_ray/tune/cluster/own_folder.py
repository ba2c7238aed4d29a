"""The folder of a private Ray: a short path, for its owner alone, and removed with the session."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from milp_ray.errors import ClusterError
from milp_ray.storage import LockFile, is_stale

# Paths of Ray's sockets must stay under 107 characters, which a long TMPDIR would break.
_LONGEST_PARENT = 28
_COMMON = "/tmp"
_PREFIX, _OWNER = "mr-", "pid"
_SCRATCH = "t"  # short, for sockets
_REMNANT_SECONDS = 600.0
_LOOKS, _LOOK_SECONDS = 20, 0.1


@dataclass
class OwnFolder:
    """The folder of a private Ray.

    Attributes:
        path: where it is.
        started: Ray ran, and ends with the session.
        keep: the folder stays, for its logs.
    """

    path: Path
    started: bool = False
    keep: bool = False

    def scratch(self) -> Path | None:
        """A temporary folder for Ray's processes, removed with this one.

        Ray ends its processes with SIGKILL, and then its dashboard, for one, leaves a socket in the
        temporary folder.

        Returns:
            None where the user's own temporary folder, elsewhere, has more space.
        """
        if str(self.path.parent) != _users_own():
            return None
        folder = self.path / _SCRATCH
        folder.mkdir(exist_ok=True)
        return folder


@contextlib.contextmanager
def own_folder() -> Iterator[OwnFolder]:
    """A new folder, which is removed in the end.

    Raises:
        ClusterError: neither the user's temporary folder nor /tmp is short and writable.
    """
    own = OwnFolder(_make_folder())  # 0700; Ray opens its own to all
    # A Ray that is interrupted while it starts ends its processes when this one exits. A handler
    # that is registered before Ray's runs after it.
    remove = functools.partial(_remove, own.path)
    atexit.register(remove)
    owner = LockFile(own.path / _OWNER, str(os.getpid()))  # the number is for people
    try:
        yield own
    finally:
        if not own.keep:
            shutil.rmtree(own.path, ignore_errors=True)
        if own.keep or own.started:
            atexit.unregister(remove)
        owner.close()


def _make_folder() -> Path:
    """Make a folder below the first suitable parent, and remove there what killed runs left."""
    faults = _unusable()
    for name, parent in _parents():
        if len(parent) > _LONGEST_PARENT:
            faults.append(f"{name} is too long ({len(parent)} characters, at most {_LONGEST_PARENT})")
            continue
        clean_up(Path(parent))
        try:
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        except OSError as error:
            faults.append(f"{name} cannot be written ({error.strerror})")
    raise ClusterError(
        f"the private Ray needs a short folder for its sockets: {' and '.join(faults)}",
        where="TMPDIR",
        expected=f"a folder of at most {_LONGEST_PARENT} characters that can be written",
        remedy="set TMPDIR to a short folder",
    )


def _parents() -> list[tuple[str, str]]:
    """Name (for errors) and path of possible parents: the user's temporary folder, then /tmp."""
    user = _users_own()
    if user == _COMMON:
        return [(_COMMON, _COMMON)]
    return [*([("TMPDIR", user)] if user else []), (_COMMON, _COMMON)]


def _users_own() -> str | None:
    """The temporary folder that Python chose; None: that is only the folder it was started in.

    Python passes over a TMPDIR that is missing or cannot be written.
    """
    with contextlib.suppress(FileNotFoundError):
        found = tempfile.gettempdir()
        if found != str(Path.cwd()) or found == os.environ.get("TMPDIR"):
            return found
    return None


def _unusable() -> list[str]:
    """What is wrong with a TMPDIR that Python passed over."""
    given, used = os.environ.get("TMPDIR"), _users_own()
    if not given or given == _COMMON or (used and Path(given).resolve() == Path(used).resolve()):
        return []
    return [f"TMPDIR ({given}) {'cannot be written' if Path(given).is_dir() else 'is not a folder'}"]


def clean_up(parent: Path) -> None:
    """Remove the folders of this user's killed runs; their Ray is gone with them."""
    for old in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if old.stat().st_uid == os.getuid() and (is_stale(old / _OWNER) or _is_remnant(old)):
                shutil.rmtree(old, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove a folder for good: processes that are ending write into it for a moment."""
    for _ in range(_LOOKS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_LOOK_SECONDS)


def _is_remnant(folder: Path) -> bool:
    """Whether an ending process of Ray made a session's folder anew after its removal."""
    old = time.time() - folder.stat().st_mtime > _REMNANT_SECONDS
    return old and [path.name for path in folder.iterdir()] == ["r"]
