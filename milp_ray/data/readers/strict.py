"""Strict JSON and bounded file reading, shared by the readers.

What Python's ``json`` accepts silently is refused: NaN and Infinity, duplicate keys, lone
surrogates, nesting without bound. Lines end at ``\\n`` only: U+2028 inside a text splits nothing. A
file that gzip packed is unpacked on the way, whatever its name; one of another kind altogether is
refused by its first bytes (:mod:`milp_ray.data.readers.file_kinds`). Meaning is *not* checked here.
A :class:`Fault` says what is wrong in fixed words: nothing of the data is ever part of it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

from milp_ray.data.readers.file_kinds import EXPECTED, GZIP, HEAD_BYTES, Content, kind_of_file
from milp_ray.errors import DataError, Problem

MAX_PROBLEMS_SHOWN = 20
NOT_UTF8 = "save the file as UTF-8 (of Latin-1, say: iconv -f LATIN1 -t UTF-8 OLD > NEW)"
_CHUNK = 1 << 20
# Text shrinks by gzip to a tenth or so; what unpacks to far more is no users' text, and could fill
# a disk.
_EXPANSION, _UNPACKED_AT_LEAST = 100, 64 << 20
_BOM = b"\xef\xbb\xbf"
# Control characters and halves of surrogate pairs.
_NOT_IN_LINES = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_NOT_IN_TEXTS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class Fault(Exception):  # noqa: N818  (internal: becomes a Problem once its place is known)
    """Something wrong in a piece of data; ``offset`` is in bytes from the start of that piece."""

    def __init__(self, fact: str, expected: str = "", remedy: str = "", offset: int = 0) -> None:
        super().__init__(fact)
        self.fact, self.expected, self.remedy, self.offset = fact, expected, remedy, offset

    def at(self, where: str) -> Problem:
        """This fault as a problem at a place."""
        return Problem(where, self.fact, self.expected, self.remedy)


class Faults:
    """Collects a file's problems, keeping only the first ones so that memory stays bounded."""

    def __init__(self, source: str, shown: int = MAX_PROBLEMS_SHOWN) -> None:
        self._source, self._shown = source, shown
        self._problems: list[Problem] = []
        self.count = 0

    def add(self, problem: Problem) -> None:
        """Note one problem."""
        self.count += 1
        if len(self._problems) < self._shown:
            self._problems.append(problem)

    def raise_if_any(self) -> None:
        """Raise a DataError with the first problems, and how many more there are."""
        if not self.count:
            return
        more = self.count - len(self._problems)
        tail = [Problem("", f"and {more} more")] if more else []
        raise DataError(self._source, [*self._problems, *tail])


@dataclass(slots=True)
class Line:
    """One line without its end. ``raw`` is None where the line was longer than allowed."""

    number: int
    offset: int
    raw: bytes | None


@dataclass(slots=True)
class LineFile:
    """Streams a regular file's lines, with the SHA-256 of all (unpacked) bytes so far.

    ``content``: what its format has in it; a table is refused where JSON lines are expected.
    """

    path: Path
    max_line_bytes: int
    content: Content = "JSON lines"
    _hash: hashlib._Hash = field(default_factory=hashlib.sha256)

    def __iter__(self) -> Iterator[Line]:
        with open_data(self.path, self.content) as file:
            yield from self._lines(file)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what was read; of the whole file once iteration has ended."""
        return self._hash.hexdigest()

    def _lines(self, file: BinaryIO) -> Iterator[Line]:
        number, offset = 0, 0
        while raw := self._read(file, self.max_line_bytes + 1):
            number += 1
            size = len(raw)
            if len(raw.removesuffix(b"\n")) > self.max_line_bytes:
                while not raw.endswith(b"\n") and (raw := self._read(file, _CHUNK)):
                    size += len(raw)
                yield Line(number, offset, None)
            else:
                mark = len(_BOM) if number == 1 and raw.startswith(_BOM) else 0
                yield Line(number, offset + mark, raw[mark:].removesuffix(b"\n"))
            offset += size

    def _read(self, file: BinaryIO, limit: int) -> bytes:
        raw = file.readline(limit)
        self._hash.update(raw)
        return raw


def read_whole(path: Path, max_bytes: int, content: Content = "JSON") -> tuple[bytes, str]:
    """All bytes of a regular file (unpacked) and their SHA-256 (hex).

    A byte order mark is among them, so that offsets are the file's own.

    Raises:
        DataError: missing, not a file, unreadable, of another kind, or larger than ``max_bytes``.
    """
    with open_data(path, content) as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        fact, remedy = f"is larger than {max_bytes} bytes", "split the file"
        raise DataError(str(path), [Problem("", fact, f"at most {max_bytes} bytes", remedy)])
    return raw, hashlib.sha256(raw).hexdigest()


def read_json(path: Path, max_bytes: int, content: Content = "JSON") -> tuple[object, str]:
    """The JSON value that a whole file is, and the SHA-256 (hex) of the file's bytes.

    Raises:
        DataError: as :func:`read_whole`; or it is not JSON, with the byte of the file.
    """
    raw, fingerprint = read_whole(path, max_bytes, content)
    try:
        return parse(raw.removeprefix(_BOM)), fingerprint
    except Fault as fault:
        offset = fault.offset + (len(_BOM) if raw.startswith(_BOM) else 0)
        raise DataError(str(path), [fault.at(f"byte {offset}")]) from None


@contextlib.contextmanager
def open_data(path: Path, content: Content = "JSON lines") -> Iterator[BinaryIO]:
    """A data file's bytes, unpacked if gzip packed it, for the length of a ``with`` block.

    Args:
        path: of a regular file.
        content: what its format has in it.

    Raises:
        DataError: see :func:`open_regular`; or it is a file of another kind, or is damaged.
    """
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(open_regular(path))
        inside = ""
        try:
            head = file.read(HEAD_BYTES)
            file.seek(0)
            if head.startswith(GZIP):
                file, inside = (
                    opened.enter_context(_unpacking(file, path)),
                    "is compressed (gzip), and inside ",
                )
                head = file.read(HEAD_BYTES)
                file.seek(0)
            if kind := kind_of_file(head, content):
                problem = Problem("", f"{inside}{kind.fact}", EXPECTED[content], kind.remedy)
                raise DataError(str(path), [problem])
            yield file
        except (EOFError, zlib.error, gzip.BadGzipFile):
            remedy = "copy or download it again (gzip -t says whether it is whole)"
            raise _not_usable(path, "is damaged or cut off (gzip)", remedy) from None
        except OSError as error:
            raise _unreadable(path, error) from None


class _Unpacked(gzip.GzipFile):
    """What gzip packed, up to a bound."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._path = path
        self._most = max(_UNPACKED_AT_LEAST, _EXPANSION * path.stat().st_size)

    def read(self, size: int | None = -1) -> bytes:
        return self._bounded(super().read(size))

    def readline(self, size: int | None = -1) -> bytes:
        return self._bounded(super().readline(-1 if size is None else size))

    def _bounded(self, raw: bytes) -> bytes:
        if self.tell() > self._most:
            fact = f"unpacks to more than {self._most} bytes, {_EXPANSION} times its size"
            raise _not_usable(self._path, fact, "unpack it yourself, and name the file that comes out")
        return raw


def _unpacking(file: BinaryIO, path: Path) -> BinaryIO:
    return cast("BinaryIO", _Unpacked(file, path))


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading bytes.

    Raises:
        DataError: missing, a folder, a pipe or device, or not permitted.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise _not_usable(path, "is a folder", "name the file inside it")
        if not stat.S_ISREG(mode):
            # A pipe cannot be read again when the run is resumed.
            raise _not_usable(path, "is not a regular file", "save the data to a file first")
        return path.open("rb")
    except FileNotFoundError:
        remedy = "check data.path in the study file; a relative path starts at the working directory"
        raise _not_usable(path, "no such file", remedy) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unreadable(path, error) from None


def decode(raw: bytes) -> str:
    """Bytes to text.

    Raises:
        Fault: not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Fault("is not UTF-8", "UTF-8 text", NOT_UTF8, error.start) from None


def parse(raw: bytes) -> object:
    """Bytes to JSON values.

    Raises:
        Fault: not UTF-8, not JSON, or JSON of the kinds named in the module's docstring.
    """
    text = decode(raw)
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise syntax_fault(text, error) from None
    except RecursionError:
        raise Fault("is nested too deeply", "a JSON value of a few levels") from None
    except ValueError:
        raise Fault("holds a number with too many digits", "a JSON value") from None


def syntax_fault(text: str, error: json.JSONDecodeError) -> Fault:
    """What is wrong with a text that is no JSON, in fixed words."""
    offset = len(text[: error.pos].encode("utf-8"))
    reason = error.msg.partition(":")[0].lower()  # what follows a colon may quote the data
    return Fault(f"is not valid JSON ({reason})", "a JSON value", offset=offset)


def check_text(value: object, name: str, *, single_line: bool = False) -> str:
    """``value`` if it is a usable, non-blank text.

    Raises:
        Fault: not a text, blank, with a lone surrogate, or with control characters (line feed,
            carriage return and tab are allowed unless ``single_line``).
    """
    if not isinstance(value, str):
        raise Fault(f"{name} is {kind_of(value)}", "a text")
    if not value.strip():
        raise Fault(f"{name} is empty", "a text that is not blank", "remove it or fill it in")
    found = (_NOT_IN_LINES if single_line else _NOT_IN_TEXTS).search(value)
    if found is None:
        return value
    if "\ud800" <= found.group() <= "\udfff":
        fact, remedy = f"{name} holds half of a surrogate pair", "repair the text's encoding"
        raise Fault(fact, "valid Unicode", remedy)
    raise Fault(f"{name} holds the control character U+{ord(found.group()):04X}", remedy="remove it")


def kind_of(value: object) -> str:
    """What JSON calls the type of a value, with an article."""
    if value is None:
        return "null"
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list"}
    return kinds.get(type(value), "an object")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise Fault("an object has the same key twice", "each key once", "remove one of the two")
    return out


def _no_constant(_: str) -> NoReturn:
    raise Fault("holds NaN or Infinity", "numbers that JSON knows")


def _not_usable(path: Path, fact: str, remedy: str) -> DataError:
    return DataError(str(path), [Problem("", fact, "a readable data file", remedy)])


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = (error.strerror if isinstance(error, OSError) else None) or "not a usable path"
    return _not_usable(path, f"cannot be read: {reason}", "check the file's permissions and data.path")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def json_decoder() -> json.JSONDecoder:
    """A decoder that refuses what the module's docstring names."""
    return _DECODER
