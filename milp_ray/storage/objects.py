"""The objects below a URL: whole files that are put, got, listed and deleted by name.

S3 and Google Cloud Storage are reached through pyarrow, other schemes through fsspec. A put is
whole or not at all: an object store shows the old object or the new one, anywhere else a temporary
sibling is renamed. What a store answers for a moment only (no connection, too many requests) is
tried again; what is left becomes a :class:`~milp_ray.errors.StorageError`. Not here: what the names
mean, and who may write.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from milp_ray.errors import StorageError
from milp_ray.storage.local import storage_error, writing
from milp_ray.storage.modes import follow, make_folder
from milp_ray.storage.urls import NATIVE, joined, url_fault

T = TypeVar("T")

# Seconds before each further try: about a quarter of a minute in all, beside the store's own
# time-outs.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
_PART_BYTES = 8 * 2**20
# Names (pyarrow's, and fsspec's) of those whose put is whole by itself.
_STORES = ("s3", "gcs", "abfs", "memory")
# S3: one request for a small object instead of three. Google: by itself a put is tried for a
# quarter of an hour within one call, during which nobody asks whether the run is still this
# process's.
_OPTIONS = {"s3": "?allow_delayed_open=true", "gs": "?retry_limit_seconds=10"}
# What no further try on a file system helps with.
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_REMEDIES = {
    "NO_SUCH_BUCKET|NoSuchBucket|[Bb]ucket (does not exist|'[^']*' not found)": (
        "make the bucket first, or correct the URL"
    ),
    "ACCESS_DENIED|AccessDenied|PERMISSION_DENIED|Forbidden|Permission denied": (
        "give the credentials the right to list, read, write and delete there"
    ),
    "INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE|UNAUTHENTICATED|EXPIRED_TOKEN|credentials": (
        "check the credentials in the environment of the driver and of every node"
    ),
}


@dataclass(frozen=True)
class ObjectInfo:
    """An object. ``mtime``: seconds since 1970 by the store's clock; None where it has none."""

    name: str
    size: int
    mtime: float | None


class Guard(Protocol):
    """Who says whether objects may be written: a lease."""

    def ensure_held(self) -> None:
        """Raises :class:`~milp_ray.errors.MilpRayError` where they may not."""

    def note_doubt(self) -> None:
        """An attempt to write had no answer: it may be done, or still be done in a while."""


class Objects:
    """All objects below a folder of a file system.

    Args:
        filesystem: of pyarrow.
        root: the folder's path in it.
        url: for people.
        pauses: seconds before each further try of what failed.
        sleep: waits that long.
    """

    def __init__(
        self,
        filesystem: Any,
        root: str,
        url: str,
        pauses: tuple[float, ...] = PAUSES,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._pauses = pauses
        self._sleep = sleep
        self._guard: Guard | None = None

    def guarded(self, guard: Guard) -> Objects:
        """The same objects, where every attempt to put or delete asks a guard first.

        So nothing that was tried for long lands in a run that is another's by now.
        """
        result = copy.copy(self)
        result._guard = guard
        return result

    def put(self, name: str, content: bytes) -> None:
        """Write an object, whole or not at all; one that is there is replaced.

        Raises:
            StorageError: it could not be written; what was there before still is.
        """
        path = self._path(name)
        whole = self._fs.type_name.removeprefix("py::fsspec+") in _STORES

        def write_below() -> None:
            try:
                self._write(path, content, whole)
            except FileNotFoundError:
                if whole:
                    raise OSError("the bucket does not exist") from None
                if self._fs.type_name == "local":
                    make_folder(Path(path).parent)
                else:
                    self._fs.create_dir(str(PurePosixPath(path).parent), recursive=True)
                self._write(path, content, whole)

        self._written(name, write_below)

    def _write(self, path: str, content: bytes, whole: bool) -> None:
        self._ask()
        # A draft is one attempt's alone: two writers would rename each other's.
        place = PurePosixPath(path)
        draft = path if whole else str(place.with_name(f".{place.name}.{secrets.randbelow(10**9)}.tmp"))
        with self._fs.open_output_stream(draft) as stream:
            stream.write(content)
        if whole:
            return
        try:
            if self._fs.type_name == "local":
                follow(Path(draft))
            self._ask()
            self._fs.move(draft, path)
        except BaseException:
            with contextlib.suppress(Exception):
                self._fs.delete_file(draft)
            raise

    def get(self, name: str) -> bytes:
        """An object's content.

        Raises:
            FileNotFoundError: there is none.
            StorageError: it could not be read.
        """

        def read() -> bytes:
            with self._fs.open_input_file(self._path(name)) as stream:
                return bytes(stream.read())

        return self._tried(name, read)

    def download(self, name: str, target: Path) -> bool:
        """Write an object's content to a file, part by part.

        Returns:
            Whether there is one; the file is as it was where there is none.

        Raises:
            StorageError: it could not be read.
        """

        def copy() -> bool:
            try:
                with self._fs.open_input_stream(self._path(name)) as stream, target.open("wb") as file:
                    while part := stream.read(_PART_BYTES):
                        file.write(part)
            except FileNotFoundError:
                return False
            return True

        return self._tried(name, copy)

    def exists(self, name: str) -> bool:
        """Whether there is an object of this very name."""
        return self._tried(name, lambda: bool(self._fs.get_file_info(self._path(name)).is_file))

    def list_below(self, folder: str = "") -> list[ObjectInfo]:
        """All objects below a folder, at any depth, by name; none where there is no such folder."""
        return sorted(
            (
                ObjectInfo(
                    info.path[len(self._root) :].lstrip("/"),
                    info.size,
                    None if info.mtime_ns is None else info.mtime_ns / 1e9,
                )
                for info in self._listed(folder)
                if info.is_file and not info.path.endswith(".tmp")
            ),
            key=lambda found: found.name,
        )

    def delete(self, name: str) -> None:
        """Delete an object; none is no error."""

        def remove() -> None:
            self._ask()
            try:
                self._fs.delete_file(self._path(name))
            except FileNotFoundError:
                return

        self._written(name, remove)

    def delete_folder(self, folder: str = "") -> None:
        """Delete all objects below a folder; none is no error."""

        def remove() -> None:
            self._ask()
            try:
                self._fs.delete_dir(self._path(folder) if folder else self._root)
            except FileNotFoundError:  # Google's, when all is gone and the folder itself never was
                return

        if self._listed(folder):  # stores differ in what they say to none
            self._written(folder, remove)

    def _listed(self, folder: str) -> list[Any]:
        from pyarrow import fs

        where = self._path(folder) if folder else self._root
        selector = fs.FileSelector(where, allow_not_found=True, recursive=True)
        return self._tried(folder, lambda: list(self._fs.get_file_info(selector)))

    def _ask(self) -> None:
        """To be called right before anything changes in the store."""
        if self._guard is not None:
            self._guard.ensure_held()

    def _path(self, name: str) -> str:
        return joined(self._root, name)

    def _written(self, name: str, act: Callable[[], None]) -> None:
        def doubted() -> None:
            try:
                act()
            except (OSError, ArrowException) as error:
                if self._guard is not None and not _remedy(error):
                    self._guard.note_doubt()
                raise

        from pyarrow import ArrowException

        self._tried(name, doubted)

    def _tried(self, name: str, act: Callable[[], T]) -> T:
        from pyarrow import ArrowException

        for pause in (*self._pauses, None):
            try:
                return act()
            except FileNotFoundError:
                raise
            except (OSError, ArrowException) as error:
                remedy = _remedy(error)
                if self._fs.type_name == "local" and isinstance(error, OSError) and error.errno:
                    if pause is None or error.errno in _LASTING:
                        plain = OSError(error.errno, os.strerror(error.errno))
                        raise storage_error(plain, Path(joined(self.url, name))) from None
                elif pause is None or remedy:
                    raise _refused(error, joined(self.url, name), remedy) from None
            self._sleep(pause)
        raise AssertionError("unreachable")


def objects_at(url: str) -> Objects:
    """The objects below a URL.

    Only S3 is asked anything: for the bucket's region.

    Raises:
        StorageError: no usable URL, or its file system cannot be set up.
    """
    from pyarrow import ArrowException, fs

    if fault := url_fault(url):
        raise StorageError("the URL cannot be used", expected=fault, remedy="correct it")
    scheme = url.partition("://")[0]
    try:
        if scheme in NATIVE:
            filesystem, root = fs.FileSystem.from_uri(url.rstrip("/") + _OPTIONS[scheme])
        else:
            from fsspec.core import url_to_fs

            inner, root = url_to_fs(url)
            filesystem = fs.PyFileSystem(fs.FSSpecHandler(inner))
    except (OSError, ArrowException, ImportError, ValueError) as error:
        raise _refused(error, url, _remedy(error)) from None
    return Objects(filesystem, root, url.rstrip("/"))


@contextmanager
def temporary_copy(url: str) -> Iterator[Path]:
    """A private copy of a file at a URL, for the length of a ``with`` block, if there is one.

    The copy has no name in any folder, only one below ``/proc`` for this process: whatever ends the
    process takes it along, and nobody else comes upon it.

    Raises:
        StorageError: the URL cannot be used or read.
    """
    folder, _, name = url.rpartition("/")
    with contextlib.ExitStack() as stack:
        with writing(Path(tempfile.gettempdir())):
            file = stack.enter_context(tempfile.TemporaryFile(prefix="milp-ray-"))
        copy = Path(f"/proc/self/fd/{file.fileno()}")
        yield copy if objects_at(folder).download(name, copy) else copy.with_name("absent")


def _remedy(error: BaseException) -> str:
    """How to mend what no further try will; empty for all else."""
    if isinstance(error, PermissionError):
        error = PermissionError("Permission denied")
    text = str(error)
    return next((remedy for pattern, remedy in _REMEDIES.items() if re.search(pattern, text)), "")


def _refused(error: BaseException, where: str, remedy: str) -> StorageError:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    text = re.sub(r" \(Request ID: [^)]*\)", "", text)
    return StorageError(
        f"cannot write or read: {text if len(text) <= 300 else text[:299] + '…'}",
        where=where,
        expected="a place that answers, and whose objects may be listed, read, written and deleted",
        remedy=remedy or "check the network and, for other than Amazon's S3, AWS_ENDPOINT_URL; then resume",
    )
