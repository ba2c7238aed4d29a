"""Results as CSV files, for several benchmarks."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def write_rows(
    rows: Sequence[Mapping[str, object]], path: Path, shown: Callable[[str, object], object]
) -> None:
    """Write rows with the same columns; ``shown`` turns a column's value into what is written."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: shown(key, value) for key, value in row.items()} for row in rows)


def short(value: object) -> object:
    """A number to four places."""
    return round(value, 4) if isinstance(value, float) else value
