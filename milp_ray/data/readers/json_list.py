"""A JSON list of any length, item by item: the file is never in memory as a whole.

What an item is refused for ends the reading, since nobody knows where the next one begins: the
error has the byte of the file.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from milp_ray.data.readers.file_kinds import Content
from milp_ray.data.readers.strict import NOT_UTF8, Fault, json_decoder, open_data, syntax_fault
from milp_ray.errors import DataError

MAX_ITEM_CHARACTERS = 64 * 1024 * 1024

_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
# A value that is cut off fails within so many characters of the cut, or in a text begun before.
_CUT = 16
_AFTER = tuple(" \t\r\n,]")
_KINDS = {"{": "an object", '"': "a text", "n": "null", "t": "a boolean", "f": "a boolean"}


@dataclass(slots=True)
class JsonList:
    """The items of a file that is one JSON list.

    Args:
        path: of the file.
        expected: what the list is of, in words.
        content: what its format has in it.
    """

    path: Path
    expected: str
    content: Content = "JSON"
    _hash: hashlib._Hash = field(default_factory=hashlib.sha256)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the file's bytes, once iteration has ended."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[object]:
        """The items, in order.

        Raises:
            DataError: the file cannot be read, is no list, or is no JSON from some byte on.
        """
        self._hash = hashlib.sha256()
        with open_data(self.path, self.content) as file:
            text = _Text(file, self._hash)
            try:
                yield from self._items(text)
            except Fault as fault:
                raise DataError(str(self.path), [fault.at(f"byte {text.offset + fault.offset}")]) from None

    def _items(self, text: _Text) -> Iterator[object]:
        first = text.next_character()
        if first != "[":
            kind = _KINDS.get(first, "a number") if first else "empty"
            raise Fault(
                f"the file is {kind}", self.expected, "use data.format: jsonl for milp_ray's own format"
            )
        text.take()
        if text.next_character() == "]":
            text.take()
        else:
            while True:
                yield text.value()
                after = text.next_character()
                text.take()
                if after == "]":
                    break
                if after != ",":
                    raise Fault("is not valid JSON (expecting ',' delimiter)", "a comma between items")
        if text.next_character():
            raise Fault("is not valid JSON (extra data)", "nothing after the list")


@dataclass(slots=True)
class _Text:
    """A file's text from some place on. ``offset``: the byte of that place."""

    file: BinaryIO
    hash: hashlib._Hash
    offset: int = 0
    _buffer: str = ""
    _at: int = 0
    _ended: bool = False
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("strict")
    )

    def next_character(self) -> str:
        """The next character that is no space, which stays; empty at the end."""
        while True:
            self._go_to(_SPACE.match(self._buffer, self._at).end())  # type: ignore[union-attr]
            if self._at < len(self._buffer):
                if self._buffer[self._at] != "\ufeff" or self.offset:
                    return self._buffer[self._at]
                self.take()
            elif not self._more():
                return ""

    def take(self) -> None:
        """Go on by the next character."""
        self._go_to(self._at + 1)

    def value(self) -> object:
        """The JSON value that begins here.

        Raises:
            Fault: there is none, or one of the kinds that :mod:`.strict` refuses.
        """
        self.next_character()
        while True:
            try:
                value, end = json_decoder().raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._buffer) - _CUT
                if not cut or not self._more_of_value():
                    fault = syntax_fault(self._buffer, error)
                    fault.offset -= len(self._buffer[: self._at].encode("utf-8"))
                    raise fault from None
            except RecursionError:
                raise Fault("is nested too deeply", "a JSON value of a few levels") from None
            except ValueError:
                raise Fault("holds a number with too many digits", "a JSON value") from None
            else:
                # A number may go on: of "1.5", "1" is one, too.
                if self._buffer[end : end + 1] in _AFTER or not self._more_of_value():
                    self._go_to(end)
                    return value

    def _go_to(self, at: int) -> None:
        self.offset += len(self._buffer[self._at : at].encode("utf-8"))
        self._at = at

    def _more_of_value(self) -> bool:
        """Read on, twice as much each time, so that a long value is not begun too often."""
        before = len(self._buffer) - self._at
        if before > MAX_ITEM_CHARACTERS:
            raise Fault(f"an item of more than {MAX_ITEM_CHARACTERS} characters", remedy="shorten it")
        while len(self._buffer) - self._at < 2 * before and self._more():
            pass
        return len(self._buffer) - self._at > before

    def _more(self) -> bool:
        """Whether there was more to read; what was gone past is dropped."""
        while not self._ended:
            raw = self.file.read(_CHUNK)
            self.hash.update(raw)
            self._ended = not raw
            try:
                found = self._decoder.decode(raw, final=self._ended)
            except UnicodeDecodeError as error:
                place = len(self._buffer[self._at :].encode("utf-8")) + error.start
                raise Fault("is not UTF-8", "UTF-8 text", NOT_UTF8, place) from None
            if found:
                self._buffer = self._buffer[self._at :] + found
                self._at = 0
                return True
        return False
