"""A file of one value a line, for readers whose users are spread over lines.

Every line that is no such value is a problem of its own, by line and byte offset; a file of which
no line is one is a single problem, since it is another file than was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from milp_ray.data.readers.strict import NOT_UTF8, Fault, Faults, Line, LineFile
from milp_ray.errors import DataError, Problem

T = TypeVar("T")

MAX_LINE_BYTES = 16 * 1024 * 1024


@dataclass(slots=True)
class Value(Generic[T]):
    """One line's value, and where it stands."""

    where: str
    value: T


@dataclass(slots=True)
class ValueLines(Generic[T]):
    """The values of a file's lines; blank lines are passed over.

    Args:
        file: the lines.
        parse: a line's bytes to its value; raises Fault.
        faults: where problems go; whoever reads the values adds further ones.
        expected: what a line is, in words.
        remedy: what helps where no line is one.
    """

    file: LineFile
    parse: Callable[[bytes], T]
    faults: Faults
    expected: str
    remedy: str
    _lines: int = 0
    _first: str = ""
    _remedies: set[str] = field(default_factory=set)

    def __iter__(self) -> Iterator[Value[T]]:
        found_any = False
        for line in self.file:
            if line.raw is not None and not line.raw.strip():
                continue
            self._lines += 1
            if (value := self._value(line)) is not None:
                found_any = True
                yield value
        if self._lines > 1 and not found_any:
            fact = f"none of its {self._lines} lines is {self.expected} ({self._first})"
            remedy = NOT_UTF8 if self._remedies == {NOT_UTF8} else self.remedy
            raise DataError(str(self.file.path), [Problem("", fact, self.expected, remedy)])

    def _value(self, line: Line) -> Value[T] | None:
        where = f"{self.file.path}:{line.number} (byte {line.offset})"
        try:
            if line.raw is None:
                most = self.file.max_line_bytes
                raise Fault(f"the line is longer than {most} bytes", f"at most {most} bytes a line")
            return Value(where, self.parse(line.raw))
        except Fault as fault:
            at = f"{self.file.path}:{line.number} (byte {line.offset + fault.offset})"
            if not self._first:
                self._first = f"line {line.number} (byte {line.offset + fault.offset}): {fault.fact}"
            self._remedies.add(fault.remedy)
            self.faults.add(fault.at(at))
            return None
