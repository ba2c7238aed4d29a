"""The labels of data sets whose responses are one of a few."""

from __future__ import annotations

from collections.abc import Mapping

#: Labels of data sets, in the order of their scale where they have one.
LABELS: Mapping[str, tuple[str, ...]] = {
    "lamp_1": ("[1]", "[2]"),
    "lamp_2": (
        "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy", "classic",
        "psychology", "fantasy", "romance", "thought-provoking", "social commentary", "violence",
        "true story",
    ),
    "lamp_2_old": (
        "food & drink", "sports", "education", "parents", "religion", "travel", "business", "crime",
        "science & technology", "culture & arts", "entertainment", "politics", "women", "style & beauty",
        "healthy living",
    ),
    "lamp_3": ("1", "2", "3", "4", "5"),
    "personamem": ("(a)", "(b)", "(c)", "(d)"),
}  # fmt: skip
