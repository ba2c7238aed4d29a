"""The tables of docs/results.md, made from the tables that compare_methods.py kept.

    python benchmarks/results_page.py

A table stands between two comments, `<!-- results: comparison-NAME DATASET -->` and
`<!-- end of results -->`; what is between them is written anew. A test holds that the page is what
this makes of the kept tables.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
_PLACE = re.compile(r"(<!-- results: (\S+) (\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
_HEAD = (
    "| method | loss | gain over `none` | users better | ROUGE-L × 100 | P-F1 × 100 | s a user | KiB |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


def page(text: str) -> str:
    """The page with all its tables made anew."""
    return _PLACE.sub(lambda it: f"{it[1]}\n{table(HERE / 'results' / it[2], it[3])}\n{it[4]}", text)


def table(folder: Path, dataset: str) -> str:
    """One row a method, in Markdown: means with intervals, and in brackets the control."""
    scores, gains, costs = (
        _rows(folder / f"{name}.csv", dataset) for name in ("table_2_scores", "gains_over_none", "costs")
    )
    best = scores[scores.metric == "loss"].set_index("method")["mean"].idxmin()
    lines = []
    for method in scores.method.unique():
        of = scores[scores.method == method].set_index("metric")
        gain = gains[(gains.method == method) & (gains.metric == "loss")]
        cost = costs[costs.method == method].iloc[0]
        loss = f"{of.loc['loss', 'mean']:.3f}"
        row = gain.iloc[0] if len(gain) else None
        lines.append(
            [
                f"`{method}`",
                (f"**{loss}**" if method == best else loss) + _control(of.loc["loss"], 1, 3),
                f"{row['mean']:+.3f} [{row.low:+.3f}, {row.high:+.3f}]" if row is not None else "",
                f"{100 * row.better:.0f} %" if row is not None else "",
                _percent(of.loc["rouge_l"]),
                f"{100 * of.loc['persona_f1', 'mean']:.2f}" + _control(of.loc["persona_f1"], 100, 2),
                f"{cost.train_seconds_per_user:.0f}",
                f"{cost.adapter_bytes / 1024:,.0f}",
            ]
        )
    return _HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rows(path: Path, dataset: str) -> pd.DataFrame:
    found = pd.read_csv(path)
    return found[found.dataset == dataset]


def _control(row: pd.Series, times: float, digits: int) -> str:
    return "" if pd.isna(row.control) else f" ({times * row.control:.{digits}f})"


def _percent(row: pd.Series) -> str:
    return f"{100 * row['mean']:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
