"""Agreement of a judge with people: Pearson's r and exact accuracy of verdicts 1, 0 and -1.

The paper's human validation (docs/references.md: Zhang 2024): of two responses to the same query,
people say whether the method's is better (1), as good (0) or worse (-1) than the other one, and so
does the judge, by the scores that it gave to each (:func:`milp_ray.evaluation.win_rate.verdicts`).
The paper reports r = 0.86 and an accuracy of 0.91 on 50 pairs.

What it cannot tell: whether people agree with each other, which bounds what a judge can reach. And
where nearly all verdicts are alike, accuracy is high by chance while r is low, or undefined.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from milp_ray.errors import JudgeError, Problem
from milp_ray.evaluation.correlation import pearson
from milp_ray.evaluation.win_rate import LOSE, TIE, WIN

COLUMNS = ("human", "judge")
_MAX_BYTES = 64 << 20
_SHOWN = 20  # problems
# U+2212 is what spreadsheets and papers write for a minus.
_LABELS = {
    **dict.fromkeys(("1", "+1", "1.0"), WIN),
    **dict.fromkeys(("0", "0.0"), TIE),
    **dict.fromkeys(("-1", "−1", "-1.0"), LOSE),
}
_EXPECTED = "1 (better), 0 (as good) or -1 (worse)"
_FORM = "a CSV file with the columns human and judge, which hold 1, 0 or -1 (docs/evaluation.md)"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a judge's verdicts are those of people.

    Example:
        >>> human = [1, 1, 0, -1, 1, 0, 1, -1, 1, 1]
        >>> judge = [1, 1, 1, -1, 1, 0, 1, 1, 1, 0]
        >>> print(agreement(human, judge))
        Pearson r 0.490, accuracy 0.700 (10 verdicts)

    Attributes:
        pearson: r of the verdicts as numbers; NaN where one side always says the same.
        accuracy: share of equal verdicts, in [0, 1]; NaN without any.
        count: verdicts of both.
        left_out: pairs without the judge's verdict.
    """

    pearson: float
    accuracy: float
    count: int
    left_out: int = 0

    def __str__(self) -> str:
        r = f"{self.pearson:.3f}" if self.pearson == self.pearson else "undefined (one side never changes)"
        lost = f", {self.left_out} without the judge's left out" if self.left_out else ""
        return f"Pearson r {r}, accuracy {self.accuracy:.3f} ({self.count} verdicts{lost})"


def agreement(human: Sequence[int], judge: Sequence[int | None]) -> Agreement:
    """How far a judge agrees with people.

    Args:
        human: 1, 0 or -1 a pair of responses.
        judge: likewise, in the same order; None where the judge gave no score.

    Raises:
        ValueError: different numbers of verdicts.
    """
    pairs = [(one, other) for one, other in zip(human, judge, strict=True) if other is not None]
    people, judged = [one for one, _ in pairs], [other for _, other in pairs]
    equal = sum(one == other for one, other in pairs)
    accuracy = equal / len(pairs) if pairs else float("nan")
    return Agreement(pearson(people, judged), accuracy, len(pairs), len(human) - len(pairs))


def read_verdicts(path: Path) -> tuple[list[int], list[int]]:
    """The columns ``human`` and ``judge`` of a CSV file; other columns are not looked at.

    Separated by comma, semicolon or tab, whichever the first line has. Blank lines do not count.

    Raises:
        JudgeError: it cannot be read, or is not such a table: all faults at once, by line and
            column, never a cell's content.
    """
    rows = _rows(path)
    if not rows:
        raise JudgeError(str(path), [Problem("", "is empty", _FORM)])
    number, header = rows[0]
    names = [cell.strip().lower() for cell in header]
    problems = [
        Problem(f"line {number}", f"has {names.count(name)} columns {name}", f"one; {_FORM}")
        for name in COLUMNS
        if names.count(name) != 1
    ]
    if problems:
        raise JudgeError(str(path), problems)
    found: dict[str, list[int]] = {name: [] for name in COLUMNS}
    for number, cells in rows[1:]:
        if len(cells) != len(names):
            expected = f"{len(names)}, as the header has"
            problems.append(Problem(f"line {number}", f"has {len(cells)} cells", expected))
            continue
        for name in COLUMNS:
            label = _LABELS.get(cells[names.index(name)].strip())
            if label is None:
                what = "is no label" if cells[names.index(name)].strip() else "is empty"
                problems.append(Problem(f"line {number}, column {name}", what, _EXPECTED))
            else:
                found[name].append(label)
    if not problems and not found["human"]:
        problems.append(Problem("", "has no row below its header", _FORM))
    if problems:
        more = len(problems) - _SHOWN
        tail = [Problem("", f"and {more} more")] if more > 0 else []
        raise JudgeError(str(path), [*problems[:_SHOWN], *tail])
    return found["human"], found["judge"]


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """The lines of a CSV file that are not blank, with their numbers."""
    text = _text(path)
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)  # the comma where there is none
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error:  # its message may quote the file
        fact = "is not CSV: a quote is not closed, or something follows one"
        raise JudgeError(str(path), [Problem(f"line {reader.line_num}", fact, _FORM)]) from None


def _text(path: Path) -> str:
    fact = ""
    try:
        if not path.exists():
            fact = "no such file"
        elif not path.is_file():
            fact = "is not a regular file"
        elif path.stat().st_size > _MAX_BYTES:
            fact = f"is larger than {_MAX_BYTES} bytes"
        else:
            text = path.read_bytes().decode("utf-8-sig")
            if "\0" not in text:
                return text
            fact = "holds NUL bytes: it is no text"
    except UnicodeDecodeError as error:
        fact = f"is not UTF-8 (byte {error.start})"
    except (OSError, ValueError) as error:
        fact = f"cannot be read: {getattr(error, 'strerror', None) or 'not a usable path'}"
    raise JudgeError(str(path), [Problem("", fact, _FORM)])
