"""Atomic writes of a run's files and folders, on a file system or at a URL: all of one, or nothing.

On a file system a draft is renamed; :mod:`milp_ray.storage.stale_drafts` removes what a killed
writer leaves of it. A path in the mirror of a run at a URL (:mod:`milp_ray.storage.mirror`) is
written to the URL before the function returns. No store renames a folder: there its commit marker,
the file that readers look for, comes last, and goes first when the folder is deleted. While a
folder is being replaced there is none. Event logs, which grow line by line, have their own writer
in :mod:`milp_ray.search.core.events`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from milp_ray.errors import StorageError
from milp_ray.storage.file_set import FileSet
from milp_ray.storage.folder_lock import ensure_held
from milp_ray.storage.local import sync_folder, write_synced, writing
from milp_ray.storage.mirror import Mirror, mirror_of
from milp_ray.storage.modes import follow, make_folder
from milp_ray.storage.session import check_session


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: readers see the old one or the new one.

    Raises:
        StorageError: nothing of the new file is left behind then.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if (mirror := mirror_of(path)) is not None:
        mirror.check_folder()
    with writing(path):
        make_folder(path.parent)
        try:
            write(draft)
            follow(draft)
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            check_session(path)
            if mirror is not None:
                mirror.put(path, draft.read_bytes())
            draft.replace(path)
            if mirror is None:
                sync_folder(path.parent)
            else:
                mirror.manifest.add(mirror.name(path), path.stat().st_size)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: object) -> None:
    """Write strict JSON (no NaN) atomically."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    atomic_write(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def write_folder(path: Path, write: Callable[[Path], object], *, commit_marker: str = "") -> None:
    """Write a folder of files atomically; an earlier folder at ``path`` is replaced.

    In a mirror the folder is at the URL only: :func:`local_copy` gets it back.

    Args:
        path: of the folder.
        write: writes its files into the folder that it is given.
        commit_marker: the file that readers look for to know that the folder is there.

    Raises:
        StorageError: nothing of the new folder is left behind then, and the earlier one is intact;
            at a URL neither is there (files without the commit marker do not count). A writer that
            is killed between two renames leaves neither, until
            :func:`~milp_ray.storage.stale_drafts.clean_up_drafts` brings the earlier one back.
    """
    if (mirror := mirror_of(path)) is not None:
        _upload(mirror, path, write, commit_marker)
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        shutil.rmtree(draft, ignore_errors=True)
        make_folder(draft)
        try:
            write(draft)
            check_session(path)
            follow(draft)
            sync_folder(draft)
            if path.exists():  # a rename cannot replace a filled folder
                old = path.with_name(f".{path.name}.{os.getpid()}.old")
                path.rename(old)
                try:
                    draft.rename(path)
                except BaseException:
                    old.rename(path)
                    raise
                sync_folder(path.parent)
                shutil.rmtree(old, ignore_errors=True)
            else:
                draft.rename(path)
                sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


def _upload(mirror: Mirror, path: Path, write: Callable[[Path], object], commit_marker: str) -> None:
    name = mirror.name(path)
    mirror.check_folder()
    with writing(path):
        draft = Path(tempfile.mkdtemp(dir=mirror.folder))
        try:
            write(draft)
            contents = {file.name: file.read_bytes() for file in sorted(draft.iterdir())}
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    before = {found.name[len(name) + 1 :] for found in mirror.objects.list_below(name)}
    check_session(path)
    if commit_marker in before:
        mirror.objects.delete(f"{name}/{commit_marker}")
    for file in sorted(contents, key=lambda file: file == commit_marker):
        check_session(path)
        mirror.put(path / file, contents[file])
    for file in before - contents.keys() - {commit_marker}:
        mirror.objects.delete(f"{name}/{file}")


def remove_folder(path: Path, *, commit_marker: str = "") -> None:
    """Delete a folder with all that is in it, here and at the URL; none is no error.

    Args:
        path: of the folder.
        commit_marker: see :func:`write_folder`.

    Raises:
        StorageError: it could not be deleted.
        RunBusyError: see :func:`~milp_ray.storage.session.check_session`.
    """
    check_session(path)
    if (mirror := mirror_of(path)) is not None:
        if commit_marker:
            mirror.objects.delete(mirror.name(path / commit_marker))
        mirror.objects.delete_folder(mirror.name(path))
        mirror.manifest.drop(mirror.name(path))
    with writing(path), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def remove_file(path: Path) -> None:
    """Delete a file, here and at the URL; none is no error.

    Raises:
        StorageError: it could not be deleted.
        RunBusyError: see :func:`~milp_ray.storage.session.check_session`.
    """
    check_session(path)
    if (mirror := mirror_of(path)) is not None:
        mirror.objects.delete(mirror.name(path))
        mirror.manifest.drop(mirror.name(path))
    with writing(path):
        path.unlink(missing_ok=True)


def check_intact(root: Path) -> None:
    """Make sure that no other program has removed anything of this process's mirror.

    To be called before what is missing there is taken for what has not happened yet. Does nothing
    for a run in a folder.

    Raises:
        StorageError: somebody has.
    """
    if (mirror := mirror_of(root)) is not None:
        mirror.check()


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """A file or folder as it is now, for the length of a ``with`` block.

    That is the file or folder itself, or a copy of what is at the URL. Where there is none, nothing
    is at the path.

    Raises:
        StorageError: it could not be read.
    """
    if (mirror := mirror_of(path)) is None:
        yield path
        return
    with mirror.local_copy(path) as copy:
        yield copy


def pull(folder: Path, pattern: str) -> None:
    """Get from the URL what other processes have written below a folder since.

    Does nothing for a run in a folder.

    Args:
        folder: in the run.
        pattern: of the paths below it, as for ``fnmatch``, such as ``*/adapter_config.json``.

    Raises:
        StorageError: the URL could not be read.
    """
    if (mirror := mirror_of(folder)) is not None:
        mirror.pull(FileSet(folders={mirror.name(folder): pattern}))


def put_file(path: Path, content: bytes) -> None:
    """Write a file of a folder that counts only with its commit marker.

    Of a run at a URL the file is at the URL alone.

    For use inside :func:`writing`.
    """
    check_session(path)
    if (mirror := mirror_of(path)) is not None:
        mirror.put(path, content)
    else:
        write_synced(path, content)
        follow(path)


def get_file(path: Path) -> bytes:
    """A file's content as it is now.

    Raises:
        OSError: it cannot be read, or there is none.
        StorageError: the URL cannot be read.
    """
    mirror = mirror_of(path)
    return path.read_bytes() if mirror is None else mirror.objects.get(mirror.name(path))


def can_read(path: Path) -> bool:
    """Whether this process can read a file of the run."""
    try:
        get_file(path)
    except (OSError, StorageError):
        return False
    return True


def names_in(folder: Path) -> set[str]:
    """Names of the files and folders in a folder as it is now; none where there is no folder.

    Raises:
        OSError, StorageError: it cannot be read.
    """
    if (mirror := mirror_of(folder)) is not None:
        start = len(mirror.name(folder)) + 1
        return {
            found.name[start:].partition("/")[0] for found in mirror.objects.list_below(mirror.name(folder))
        }
    with contextlib.suppress(FileNotFoundError):
        return {path.name for path in folder.iterdir()}
    return set()


def check_log(path: Path) -> None:
    """Make sure that a log holds what this process has got or brought of it, before it is opened.

    Raises:
        StorageError: somebody removed or cut it; or see :func:`check_intact`.
    """
    if (mirror := mirror_of(path)) is not None:
        mirror.check_folder()
        with contextlib.suppress(FileNotFoundError):
            mirror.manifest.check_log(mirror.name(path), path.read_bytes())
            return
        mirror.manifest.check_log(mirror.name(path), b"")


def folders_below(folder: Path) -> list[tuple[str, str]]:
    """The folders two levels below a folder as it is now, by both names; drafts do not count.

    Raises:
        OSError, StorageError: it cannot be read.
    """
    if (mirror := mirror_of(folder)) is not None:
        start = len(mirror.name(folder)) + 1
        parts = [found.name[start:].split("/") for found in mirror.objects.list_below(mirror.name(folder))]
        return sorted({(part[0], part[1]) for part in parts if len(part) > 2})
    return sorted((path.parent.name, path.name) for path in folder.glob("[!.]*/[!.]*") if path.is_dir())


@contextmanager
def appending(path: Path) -> Iterator[None]:
    """Around the writing of an event log's next line, which a mirror uploads within a second.

    Raises:
        StorageError, RunFolderError: earlier lines could not be uploaded, or the run is another
            driver's by now; nothing should be written then.
    """
    ensure_held(path)
    mirror = mirror_of(path)
    uploader = None if mirror is None else mirror.appending()
    yield
    if uploader is not None:
        uploader.mark(path)
