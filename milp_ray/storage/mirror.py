"""A run at a URL has a mirror in every process that works on it: a private folder of this machine.

The process reads and writes its mirror as if that were the run folder. What it writes whole goes to
the URL at once (:mod:`milp_ray.storage.files`), logs that grow follow within a second. A path in a
mirror (:class:`MirrorPath`) is, in another process, the same place in that process's own mirror, so
it can be sent to a worker on any node. Mirrors share nothing but the URL, are readable by their
owner only, and go with their process. What a killed driver left is kept for the next one on this
machine.

What a driver does beside is :mod:`milp_ray.storage.url_driver`'s. Which files a run has is not
known here: see :mod:`milp_ray.study.run_folder`.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PosixPath

from milp_ray.errors import StorageError
from milp_ray.layout import EVENTS, LEASES
from milp_ray.storage.file_set import FileSet
from milp_ray.storage.lease import Lease
from milp_ray.storage.local import write_synced, writing
from milp_ray.storage.lock_file import LockFile, is_stale
from milp_ray.storage.log_uploader import LogUploader
from milp_ray.storage.manifest import Manifest
from milp_ray.storage.objects import ObjectInfo, Objects, objects_at
from milp_ray.storage.urls import joined

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]{0,127}")
# In a mirror's folder: who lives, whether a driver it is, and the run.
_OWNER, DRIVER, RUN = "owner", "driver", "run"
_FOLDER = "twins"  # the name of earlier versions, whose logs may lie there, not uploaded yet
_THREADS = 8
_mirrors: dict[str, Mirror] = {}
_lock = threading.Lock()


class MirrorPath(PosixPath):
    """A path in a mirror. Pickled, it is the same place at the URL, whatever process reads it."""

    __slots__ = ()

    def __reduce__(self) -> tuple[object, ...]:
        mirror = mirror_of(self)
        if mirror is None:
            return (Path, (str(self),))
        return (_path_at, (mirror.url, "" if self == mirror.root else mirror.name(self)))


def _path_at(url: str, name: str) -> Path:
    root = mirror_at(url).root
    return root / name if name else root


class Mirror:
    """See the module. Made by :func:`mirror_at`.

    Attributes:
        url: of the run.
        root: the folder that is read and written in place of it.
        objects: at the URL.
        folder: in which ``root`` is.
        manifest: of what must be in ``root``.
        lease: of the run, where this process drives it.
        uploader: of the run's logs, where this process drives it.
    """

    def __init__(self, url: str, objects: Objects, base: Path | None = None) -> None:
        self.url = url
        self.objects = objects
        self._base = base or _base()
        self._mark = hashlib.sha256(url.encode()).hexdigest()[:24]
        self._process = os.getpid()
        self.lease: Lease | None = None
        self.uploader: LogUploader | None = None
        with writing(self._base):
            self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_private(self._base)
            self._clean_up()
            self.folder = Path(tempfile.mkdtemp(prefix=f"{self._mark}-", dir=self._base))
            self._owner = LockFile(self.folder / _OWNER)
            self.root: Path = MirrorPath(self.folder / RUN)
            self.root.mkdir()
        self.manifest = Manifest(self.root)

    def name(self, path: Path) -> str:
        """The name of a path's object.

        Raises:
            StorageError: a part of it is not a plain file name, as aliases and trial numbers are.
        """
        parts = path.relative_to(self.root).parts
        if not parts or not all(_PART.fullmatch(part) for part in parts):
            raise StorageError(
                "a name is not a plain file name",
                expected="letters, digits, '.', '_', '=' and '-'",
                remedy="use an alias instead of a raw user id in names",
            )
        return "/".join(parts)

    def put(self, path: Path, content: bytes) -> None:
        """Write the object of a path.

        Raises:
            StorageError, RunFolderError: it could not be written, or is not this process's to write
                any more.
        """
        self.check_folder()
        self.objects.put(self.name(path), content)

    def refresh(self, files: FileSet) -> None:
        """Get files of the run as they are now. Does nothing for a driver, which has them."""
        if self.lease is not None:
            return
        with writing(self.folder):
            for path in sorted(self.root.rglob("*")):
                if path.is_file() and files.has("/".join(path.relative_to(self.root).parts)):
                    path.unlink(missing_ok=True)
                    self.manifest.drop("/".join(path.relative_to(self.root).parts))
        self.pull(files)

    def check(self) -> None:
        """Make sure that nobody else has removed anything of the folder.

        Raises:
            StorageError: somebody has.
        """
        self.check_folder()
        self.manifest.check()

    def check_folder(self) -> None:
        """As :meth:`check`, but of the folder as a whole only, which costs nothing."""
        if not self._owner.is_there:
            raise self.manifest.gone()

    def pull(self, files: FileSet) -> None:
        """Get those of the run's files that are not in the mirror yet.

        Raises:
            StorageError: the URL cannot be read; or see :meth:`check`.
        """
        self.check()
        there = [ObjectInfo(name, 0, None) for name in files.names]
        for folder in files.folders:
            there += [found for found in self.objects.list_below(folder) if files.has(found.name)]
        missing = [
            found for found in there if _is_plain(found.name) and not (self.root / found.name).exists()
        ]
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="pull") as pool:
            list(pool.map(self._get, missing))

    def _get(self, found: ObjectInfo) -> None:
        try:
            content = self.objects.get(found.name)
        except FileNotFoundError:  # deleted meanwhile
            return
        path = self.root / found.name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.tmp")
            write_synced(draft, content)
            draft.chmod(0o600)
            if found.mtime is not None:  # what is newer there is newer here
                os.utime(draft, (found.mtime, found.mtime))
            draft.replace(path)
        if found.name.startswith(f"{EVENTS}/"):
            self.manifest.add_log(found.name, content)
        else:
            self.manifest.add(found.name, len(content))

    @contextmanager
    def local_copy(self, path: Path) -> Iterator[Path]:
        """A copy of a file or folder as it is at the URL now, of the same name, if it is there."""
        name = self.name(path)
        self.check_folder()
        with writing(self.folder):
            room = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            copy = room / path.name
            names = {name: copy}
            if not self.objects.exists(name):
                below = [found.name[len(name) + 1 :] for found in self.objects.list_below(name)]
                names = {f"{name}/{each}": copy / each for each in below if _is_plain(each)}
            for each, target in names.items():
                try:
                    content = self.objects.get(each)
                except FileNotFoundError:  # none, or deleted meanwhile
                    continue
                with writing(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content)
            yield copy
        finally:
            shutil.rmtree(room, ignore_errors=True)

    def appending(self) -> LogUploader | None:
        """Who uploads logs that are appended to; None where this process is no driver.

        Raises:
            StorageError, RunFolderError: what was appended before could not be uploaded.
        """
        self.check_folder()
        if self.uploader is not None:
            self.uploader.check()
        return self.uploader

    def killed_drivers(self) -> list[Path]:
        """Folders of the mirrors of this run that killed drivers of this machine left."""
        others = (old for old in self._base.glob(f"{self._mark}-*") if old != self.folder)
        return [old for old in others if (old / DRIVER).exists() and is_stale(old / _OWNER)]

    def close(self) -> None:
        """Delete the local folder, unless it holds what could not be uploaded."""
        if os.getpid() != self._process:
            return  # a fork's end is not that of its parent
        with _lock:
            if _mirrors.get(self.url) is self:
                del _mirrors[self.url]
        if not (self.folder / DRIVER).exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._owner.close()

    def _clean_up(self) -> None:
        """Remove killed processes' mirrors, but no driver's: its logs may not be at the URL."""
        for old in self._base.iterdir():
            if not (old / DRIVER).exists() and is_stale(old / _OWNER):
                shutil.rmtree(old, ignore_errors=True)


def mirror_at(url: str) -> Mirror:
    """This process's mirror of the run at a URL.

    Raises:
        StorageError: the URL cannot be used, or the temporary folder not be written.
    """
    url = url.rstrip("/")
    with _lock:
        if url not in _mirrors:
            _mirrors[url] = Mirror(url, objects_at(url))
        return _mirrors[url]


def mirror_of(path: Path) -> Mirror | None:
    """The mirror that a path is in; None for a path of the file system."""
    if not _mirrors:
        return None
    return next((mirror for mirror in list(_mirrors.values()) if path.is_relative_to(mirror.root)), None)


def close_mirrors() -> None:
    """Delete this process's mirrors, as its end does."""
    for mirror in list(_mirrors.values()):
        mirror.close()


atexit.register(close_mirrors)


def location_of(path: Path) -> str:
    """The location of a file or folder, for people: its path, or its URL if it is in a mirror."""
    mirror = mirror_of(path)
    if mirror is None:
        return str(path)
    return mirror.url if path == mirror.root else joined(mirror.url, mirror.name(path))


def _base() -> Path:
    cache = os.environ.get("MILP_RAY_CACHE")
    if cache:
        return Path(cache).expanduser().absolute() / _FOLDER
    return Path(tempfile.gettempdir()) / f"milp-ray-{_FOLDER}-{os.getuid()}"


def _is_plain(name: str) -> bool:
    """Whether an object's name, which anybody may have chosen, stays below the folder."""
    is_lease = name.startswith(f"{LEASES}/")
    return not is_lease and all(_PART.fullmatch(part) for part in name.split("/"))


def _check_private(base: Path) -> None:
    """The folder stands where everybody may make one: it must be nobody else's."""
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise StorageError(
            "the folder for local copies of runs is not private",
            where=str(base),
            expected="a folder of yours that nobody else may enter (mode 0700)",
            remedy="remove it, or set MILP_RAY_CACHE to a folder of yours",
        )
