"""docs/references.md has every paper that the code names, and says where the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "milp_ray"
PAGE = (ROOT / "docs" / "references.md").read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"^\*\*(.+?)\.\*\* (.+?)(?=\n\n|\Z)", PAGE, re.MULTILINE | re.DOTALL))
_YEAR = r"(?:19|20)\d\d\b"


def cited(path: Path) -> set[str]:
    """The keys that a module names: an author and a year, whatever lines they stand on."""
    text = re.sub(r"\s+#?\s*", " ", path.read_text(encoding="utf-8"))
    return set(re.findall(rf"\b[A-Z][a-zé-ž]+ {_YEAR}", text))


CITED = {
    path.relative_to(PACKAGE).as_posix(): keys
    for path in sorted(PACKAGE.rglob("*.py"))
    if (keys := cited(path))
}


def test_every_paper_that_is_named_has_an_entry_and_says_where_to_look() -> None:
    assert {(file, key) for file, keys in CITED.items() for key in keys if key not in ENTRIES} == set()
    lost = [
        file for file in CITED if "docs/references.md" not in (PACKAGE / file).read_text(encoding="utf-8")
    ]
    assert lost == []


def test_papers_are_named_by_their_keys_alone() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
        assert re.findall(rf"[A-Z]\w+ (?:et al\.|and [A-Z]\w+),? {_YEAR}", text) == [], path


@pytest.mark.parametrize("key", ENTRIES)
def test_an_entry_names_the_modules_that_name_it(key: str) -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", ENTRIES[key]))
    assert named and named == {file for file, keys in CITED.items() if key in keys}


def test_an_entry_has_authors_a_title_and_the_year_of_its_key() -> None:
    for key, text in ENTRIES.items():
        author, year = key.split()
        assert author in text.partition("*")[0] and year in text and re.search(r"\*[^*]+\*", text), key
