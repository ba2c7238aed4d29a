"""The append-only event log of a search: JSON lines, on disk before they are acted on.

One event a line: ``created`` (what the search is), ``asked`` (a batch of proposals), ``told``,
``failed``, ``reference`` and ``transferred`` (what finished users' searches hand on). A line is
written with its newline in one go and flushed to the disk, so a last line without a newline never
happened: it is cut off and reported. Anything else that is not a well-formed event is damage that
no one should guess at: an error with its line number. A full disk leaves the log as it was.

What the events mean is *not* covered: :mod:`milp_ray.search.state` replays them. One process writes
a log; others may read it at any time (:func:`observed_values`, :func:`ended_trials`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from milp_ray.errors import StorageError
from milp_ray.storage import (
    appending,
    check_log,
    ensure_held,
    follow,
    make_folder,
    storage_error,
    sync_folder,
)

Event = Mapping[str, object]

_REMEDY = "restore the log from a backup, or move it away and begin this user's search anew"


class EventLog:
    """A log in a file, or in memory only.

    Example:
        >>> log = EventLog(folder / "events.jsonl")
        >>> log.append({"event": "failed", "id": 0, "reason": "out of memory"})
        >>> EventLog(folder / "events.jsonl").events == log.events  # an append is on the disk
        True

    Args:
        path: of the file, made with its folder if absent; None keeps the events in memory.

    Attributes:
        events: all events so far, in order. Do not change.
        repaired: what was mended on opening; empty for nothing.

    Raises:
        StorageError: the file cannot be read or written, or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.events: list[Event] = []
        self.repaired = ""
        self._size = 0
        if self.path is not None:
            self._open(self.path)

    @property
    def size(self) -> int:
        """Bytes of the file; 0 in memory."""
        return self._size

    def append(self, event: Event) -> None:
        """Write an event to the disk, then remember it.

        Raises:
            StorageError: the disk is full, say; the file and :attr:`events` are as they were.
            RunFolderError: the run is at a URL, and another driver took it over.
        """
        data = json.dumps(event, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"
        if self.path is not None:
            with appending(self.path):
                self._write(self.path, data)
                self._size += len(data)
        self.events.append(event)

    def _open(self, path: Path) -> None:
        ensure_held(path)
        check_log(path)
        try:
            first, new = not path.parent.exists(), not path.exists()
            make_folder(path.parent)
            with path.open("ab+") as file:
                file.seek(0)
                data = file.read()
                kept = data[: data.rfind(b"\n") + 1]
                self.events = _parsed(kept, path)
                if len(kept) < len(data):  # in a mirror, too: only whole lines are uploaded
                    file.truncate(len(kept))
                    os.fsync(file.fileno())
                    self.repaired = (
                        f"the last line of the event log was cut short while it was written; "
                        f"its {len(data) - len(kept)} bytes were removed (line {len(self.events) + 1})"
                    )
            if new:
                follow(path)
                sync_folder(path.parent)
                if first:
                    sync_folder(path.parent.parent)
        except OSError as error:
            raise storage_error(error, path) from error
        self._size = len(kept)

    def _write(self, path: Path, data: bytes) -> None:
        # Opened for every event: a study of a thousand users would hold a thousand open files.
        try:
            handle = os.open(path, os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError as error:
            raise log_is_lost(path) from error
        except OSError as error:
            raise storage_error(error, path) from error
        try:
            size = os.fstat(handle).st_size
            if size < self._size or (size > self._size and not self._remnant(path, size)):
                raise StorageError(
                    "the event log was changed by another process",
                    where=str(path),
                    remedy="let one driver at a time work on a run folder, then resume",
                )
            if size > self._size:
                os.ftruncate(handle, self._size)
            try:
                written = 0
                while written < len(data):
                    written += os.write(handle, data[written:])
                os.fsync(handle)
            except OSError:
                # Frees space rather than taking it, so it works on a full disk; should it fail
                # nevertheless, the remnant is cut off by the next append or by the next opening.
                os.ftruncate(handle, self._size)
                raise
        except OSError as error:
            raise storage_error(error, path) from error
        finally:
            os.close(handle)

    def _remnant(self, path: Path, size: int) -> bool:
        """Whether what stands behind the last known event is a line that was never finished."""
        with path.open("rb") as file:
            file.seek(self._size)
            return b"\n" not in file.read(size - self._size)


def log_is_lost(path: Path) -> StorageError:
    """The error for a log that this process has written or read, and that is not there any more."""
    return StorageError(
        "the event log is gone, or shorter than it was",
        where=str(path),
        expected="what milp-ray wrote there, for as long as a driver works on the run",
        remedy="restore it from a backup, then resume; without it this user's search begins anew",
    )


def observed_values(path: str | os.PathLike[str]) -> list[tuple[int, dict[str, float]]]:
    """The observations of a log as (id, values by name), in order; the file is not locked.

    For workers, which read while the driver writes: an unfinished last line is ignored, an absent
    file is empty.

    Raises:
        StorageError: the file cannot be read, or is damaged.
    """
    log = Path(path)
    return [
        (whole(event, "id", number, log), numbers(event, "values", number, log))
        for number, event in enumerate(events_so_far(log), start=1)
        if event["event"] == "told"
    ]


def values_by_user(path: str | os.PathLike[str]) -> list[tuple[int | None, str, dict[str, float]]]:
    """What each user of a population measured, as (id, alias, values); id None: without a memory.

    Nothing where a trial is of one user. It raises as :func:`observed_values` does.
    """
    log, rows = Path(path), list[tuple[int | None, str, dict[str, float]]]()
    for number, event in enumerate(events_so_far(log), start=1):
        found = event.get("by_user", {})
        if not isinstance(found, dict):
            damaged(number, log, "has no valid by_user")
        trial = whole(event, "id", number, log) if found and event["event"] == "told" else None
        rows += [(trial, alias, numbers(found, alias, number, log)) for alias in found]
    return rows


def ended_trials(path: str | os.PathLike[str]) -> int:
    """How many trials of a log were told or failed; it raises as :func:`observed_values` does."""
    return sum(event["event"] in ("told", "failed") for event in events_so_far(Path(path)))


def events_so_far(log: Path) -> list[Event]:
    """The events of a log that another process may be writing.

    It ignores an unfinished last line and raises as :func:`observed_values` does.
    """
    try:
        data = log.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_error(error, log) from error
    return _parsed(data[: data.rfind(b"\n") + 1], log)


def damaged(number: int, where: Path | None, what: str) -> NoReturn:
    """Raise the error for a line that is not what it should be."""
    raise StorageError(
        f"line {number} of the event log {what}",
        where=str(where or "the log in memory"),
        expected="the lines that milp_ray wrote, in order",
        remedy=_REMEDY,
    )


def whole(event: Event, key: str, number: int, where: Path | None) -> int:
    """The whole number ≥ 0 under ``key`` of the event in line ``number``, or :func:`damaged`."""
    value = event.get(key)
    if type(value) is not int or value < 0:
        damaged(number, where, f"has no valid {key}")
    return value


def text(event: Event, key: str, number: int, where: Path | None) -> str:
    """The text under ``key``, or :func:`damaged`."""
    value = event.get(key)
    if not isinstance(value, str):
        damaged(number, where, f"has no valid {key}")
    return value


def numbers(event: Event, key: str, number: int, where: Path | None) -> dict[str, float]:
    """The table of finite numbers by name under ``key``, or :func:`damaged`."""
    value = event.get(key)
    if not isinstance(value, dict) or not all(type(item) in (int, float) for item in value.values()):
        damaged(number, where, f"has no valid {key}")
    try:
        return {str(name): float(item) for name, item in value.items()}
    except OverflowError:
        damaged(number, where, f"has no valid {key}")


def _parsed(data: bytes, path: Path) -> list[Event]:
    result: list[Event] = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            event = json.loads(
                line.decode("ascii"), parse_constant=_refuse, parse_float=_float, object_pairs_hook=_once
            )
        except (ValueError, RecursionError):
            damaged(number, path, "is damaged")
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            damaged(number, path, "is not an event")
        result.append(event)
    return result


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _float(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError("out of range")
    return number


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result
