"""docs/decisions.md: every decision in one form, and every citation of one leads there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
DECISIONS = {
    int(number): text
    for number, text in re.findall(r"^## (\d+)\. (.+?)(?=\n## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
PARTS = ["Decision", "Reason", "Alternative", "What would change it"]


def test_decisions_are_numbered_from_one_on() -> None:
    assert list(DECISIONS) == list(range(1, len(DECISIONS) + 1))


@pytest.mark.parametrize("number", DECISIONS)
def test_a_decision_says_what_why_what_else_and_what_would_change_it(number: int) -> None:
    assert re.findall(r"^- \*\*(.+?)\.\*\* ", DECISIONS[number], re.MULTILINE) == PARTS


def test_a_citation_leads_to_a_decision() -> None:
    cited = [
        int(number)
        for path in (ROOT / "milp_ray").rglob("*.py")
        for number in re.findall(r"docs/decisions\.md, (\d+)", path.read_text(encoding="utf-8"))
    ]
    assert cited and set(cited) <= set(DECISIONS)
