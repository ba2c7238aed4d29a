"""A table for people, as Markdown and LaTeX, beside the CSV of its numbers.

What stands in the tables is :mod:`milp_ray.comparison.tables`'s part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from milp_ray.storage import atomic_write

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
    "−": r"$-$",
}
_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: of its files: ``table_2_scores``.
        caption: one sentence: what is shown, of whom, in which unit.
        header: a text a column.
        rows: as many texts each.
        numbers: what the CSV holds, unrounded.
        notes: what a reader must know; a sentence each.
    """

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: pd.DataFrame
    notes: Sequence[str] = field(default_factory=tuple)

    def markdown(self) -> str:
        """The table as GitHub's Markdown, caption and notes included.

        >>> table = Table("t", "Two users.", ["user", "loss"], [["a|b", "1.5"]], pd.DataFrame())
        >>> print(table.markdown())
        Two users.
        <BLANKLINE>
        | user | loss |
        |---|---|
        | a\\|b | 1.5 |
        <BLANKLINE>
        """
        lines = [self.caption, "", _line(self.header), "|" + "---|" * len(self.header)]
        lines += [_line(row) for row in self.rows]
        lines += [f"\n{note}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """The table as a LaTeX float for the package booktabs.

        >>> print(Table("t", "50 %.", ["user_id"], [["a & b"]], pd.DataFrame()).latex())
        % needs \\usepackage{booktabs}
        \\begin{table}
        \\caption{50 \\%.}\\label{tab:t}
        \\begin{tabular}{l}
        \\toprule
        user\\_id \\\\
        \\midrule
        a \\& b \\\\
        \\bottomrule
        \\end{tabular}
        \\end{table}
        <BLANKLINE>
        """
        columns = "l" + "r" * (len(self.header) - 1)
        lines = [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            rf"\caption{{{_escaped(self.caption)}}}\label{{tab:{self.name}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _latex_line(self.header),
            r"\midrule",
            *map(_latex_line, self.rows),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {_escaped(note)}" for note in self.notes),
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        """``<name>.csv``, ``.md`` and ``.tex`` in a folder, each atomically.

        Raises:
            StorageError: the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            ".md": self.markdown(),
            ".tex": self.latex(),
            ".csv": self.numbers.to_csv(index=False),
        }
        for ending, text in texts.items():
            _write_text(folder / f"{self.name}{ending}", text)


def _write_text(path: Path, text: str) -> None:
    atomic_write(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(_escaped, cells)) + r" \\"


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda found: _LATEX[found.group()], text)
