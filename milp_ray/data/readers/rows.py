"""Rows of a table: CSV and its like, parquet, a JSON list of objects, JSON lines.

What a file is, is told from its first bytes. Of a table with a header only the wanted columns are
kept. Positions, never cells or names of columns, are in errors: a CSV without a header has a user's
text where names should be.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from milp_ray.data.readers.file_kinds import PARQUET
from milp_ray.data.readers.json_list import JsonList
from milp_ray.data.readers.lines import MAX_LINE_BYTES, ValueLines
from milp_ray.data.readers.strict import (
    Fault,
    Faults,
    LineFile,
    check_text,
    decode,
    kind_of,
    open_data,
    parse,
)
from milp_ray.errors import DataError, Problem

_SEPARATORS = (",", "\t", ";", "|")
_CHUNK = 1 << 20


@dataclass(slots=True)
class Row:
    """One row: where it stands, and its cells by column; absent cells are not there."""

    where: str
    cells: dict[str, object]


class Table:
    """A table's rows.

    Args:
        path: of the file.
        needed: columns without which it is not the table that was meant.
        optional: further columns that are taken where they are there.
        faults: where problems of rows go.
        remedy: what helps where a needed column is missing.
    """

    def __init__(
        self,
        path: Path,
        needed: Sequence[str],
        optional: Collection[str],
        faults: Faults,
        remedy: str = "say in data.columns how they are called; the first line of a CSV has the names",
    ) -> None:
        self._path = path
        self._needed = tuple(needed)
        self._wanted = {*needed, *optional}
        self._faults = faults
        self._remedy = remedy
        self.fingerprint = ""

    def __iter__(self) -> Iterator[Row]:
        """The rows, in the file's order.

        Raises:
            DataError: it cannot be read, is no table, or lacks a needed column.
        """
        with open_data(self._path, "table") as file:
            head = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        if head.startswith(PARQUET):
            yield from self._parquet()
        elif head.startswith(b"["):
            yield from self._json()
        elif head.startswith(b"{"):
            yield from self._json_lines()
        else:
            yield from self._csv()

    def _check(self, found: Collection[str], where: str = "") -> None:
        """All needed columns are there."""
        if missing := [name for name in self._needed if name not in found]:
            fact = f"{len(found)} columns, and none is called " + " or ".join(repr(name) for name in missing)
            expected = "columns " + ", ".join(self._needed)
            problem = Problem(where, f"has {fact}", expected, self._remedy)
            raise DataError(str(self._path), [problem])

    def _csv(self) -> Iterator[Row]:
        file = LineFile(self._path, MAX_LINE_BYTES, "table")
        lines = _Lines(file, self._faults)
        limit = csv.field_size_limit(MAX_LINE_BYTES)  # of the whole process
        try:
            header, rows = self._header(lines)
            if header:
                places = {name: i for i, name in enumerate(header) if name in self._wanted}
                for start, cells in rows:
                    where = f"{self._path}:{start}"
                    if len(cells) != len(header):
                        fact = f"has {len(cells)} cells, and the header {len(header)}"
                        self._faults.add(Problem(where, fact, "as many cells as columns"))
                        continue
                    yield Row(where, {name: cells[i] for name, i in places.items()})
        finally:
            csv.field_size_limit(limit)
        self.fingerprint = file.fingerprint

    def _header(self, lines: _Lines) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
        first = next(iter(lines), "")
        if "\r" in first.rstrip("\r\n"):
            fact, remedy = "has a carriage return within its first line", "end lines by \\n: tr '\\r' '\\n'"
            raise DataError(str(self._path), [Problem(f"{self._path}:1", fact, "one line of names", remedy)])
        by_separator = {
            one: [name.strip() for name in next(csv.reader([first], delimiter=one), [])]
            for one in _SEPARATORS
        }
        separator = max(
            _SEPARATORS, key=lambda one: (len(self._wanted & set(by_separator[one])), len(by_separator[one]))
        )
        header = by_separator[separator]
        if header:
            self._check(set(header), f"{self._path}:1")
            if twice := [i for i, name in enumerate(header) if name in self._wanted and name in header[:i]]:
                fact = f"column {twice[0] + 1} is called as one before it"
                raise DataError(str(self._path), [Problem(f"{self._path}:1", fact, "each name once")])
        return header, _records(lines, separator, self._path, self._faults)

    def _parquet(self) -> Iterator[Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with open_data(self._path, "table") as file:
            whole = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                whole.update(chunk)
            file.seek(0)
            try:
                table = pq.ParquetFile(file)
                names = table.schema_arrow.names
                self._check(names)
                number = 0
                for batch in table.iter_batches(columns=[name for name in names if name in self._wanted]):
                    for cells in batch.to_pylist():
                        number += 1
                        yield Row(f"{self._path}: row {number}", cells)
            except pa.ArrowException:
                remedy = "copy or download it again, or write it anew"
                problem = Problem("", "is a parquet file that cannot be read", "a whole one", remedy)
                raise DataError(str(self._path), [problem]) from None
        self.fingerprint = whole.hexdigest()

    def _json(self) -> Iterator[Row]:
        items = JsonList(self._path, "a list of objects, one a row", "table")
        names: set[str] = set()
        number = 0
        for number, item in enumerate(items, 1):
            where = f"{self._path}: item {number}"
            if not isinstance(item, dict):
                self._faults.add(Problem(where, f"is {kind_of(item)}", "an object, one a row"))
                continue
            names |= item.keys()
            yield Row(where, self._cells(item))
        if names or (number and not self._faults.count):
            self._check(names)
        self.fingerprint = items.fingerprint

    def _json_lines(self) -> Iterator[Row]:
        file = LineFile(self._path, MAX_LINE_BYTES, "table")
        remedy = "name a table: CSV, parquet, a JSON list or JSON lines of objects"
        seen: set[str] = set()
        for line in ValueLines(file, _object, self._faults, "an object, one a row", remedy):
            seen |= line.value.keys()
            yield Row(line.where, self._cells(line.value))
        self._check(seen)
        self.fingerprint = file.fingerprint

    def _cells(self, item: dict[str, object]) -> dict[str, object]:
        return {name: value for name, value in item.items() if name in self._wanted}


def cell_text(value: object, name: str, *, single_line: bool = False) -> str | None:
    """A cell's text; numbers are written out, null and blank cells are None.

    Raises:
        Fault: it holds something else, or a text that cannot be used.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value != value:  # NaN: what pandas writes for a missing cell
            return None
        if value in (float("inf"), float("-inf")):  # JSON's 1e999 is one
            raise Fault(f"{name} is infinite", "a text")
        value = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return check_text(value, name, single_line=single_line)


@dataclass(slots=True)
class _Lines:
    """A CSV's lines as text with their ends, which quoted cells may hold."""

    file: LineFile
    faults: Faults
    _iterator: Iterator[str] | None = None

    def __iter__(self) -> Iterator[str]:
        if self._iterator is None:
            self._iterator = self._texts()
        return self._iterator

    def _texts(self) -> Iterator[str]:
        for line in self.file:
            where = f"{self.file.path}:{line.number} (byte {line.offset})"
            try:
                if line.raw is None:
                    raise Fault(f"the line is longer than {self.file.max_line_bytes} bytes")
                text = decode(line.raw)
            except Fault as fault:
                self.faults.add(fault.at(where))
                text = (line.raw or b"").decode("utf-8", errors="replace")
            yield text + "\n"


def _records(lines: _Lines, separator: str, path: Path, faults: Faults) -> Iterator[tuple[int, list[str]]]:
    """The lines after the header, taken apart: number of the first line, cells."""
    reader = csv.reader(lines, delimiter=separator, strict=True)
    start = 2
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            fact = "is not valid CSV: a quote that is not closed or stands inside a cell"
            remedy = 'double quotes inside a quoted cell: "a ""word"" in quotes"'
            faults.add(Problem(f"{path}:{start}", fact, "cells as RFC 4180 has them", remedy))
            cells = []
        if cells:
            yield start, cells
        start = reader.line_num + 2


def _object(raw: bytes) -> dict[str, object]:
    value = parse(raw)
    if not isinstance(value, dict):
        raise Fault(f"the line is {kind_of(value)}", "an object, one a row")
    return value
