"""`milp-ray data stats`: users' data in numbers, who a user is, under which licence."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from milp_ray.config.models import DataSettings
from milp_ray.core_dumps import no_core_dumps
from milp_ray.data.readers import find_format, read_users
from milp_ray.data.statistics import Statistics, regime_for, samples_needed, statistics_of


def data_view(settings: DataSettings) -> RenderableType:
    """Read users' data and say what it is, without a text or an id.

    Raises:
        StorageError, DataError: it cannot be read.
    """
    no_core_dumps()
    known = find_format(settings.format)
    read = read_users(settings)
    found = statistics_of(read.users, settings)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    for name, value in _numbers(found):
        table.add_row(name, value)
    notes = Table(box=None, show_header=False, pad_edge=False)
    notes.add_column(no_wrap=True)
    notes.add_column()
    for name, value in (
        ("format", settings.format),
        ("a user is", known.users.replace("`", "")),
        ("licence", known.licence),
        *([("to be cited", known.citation)] if known.citation else []),
        *((f"{count} left out", f"users with {reason}") for reason, count in sorted(read.skipped.items())),
        *((f"{count} dropped", reason) for reason, count in sorted(read.dropped.items())),
    ):
        notes.add_row(name, Text(value))
    regime = regime_for(read.users, settings)
    return Group(table, Text(""), notes, Text(""), Text(regime_note(found, settings, regime == "by_user")))


def regime_note(found: Statistics, settings: DataSettings, by_user: bool) -> str:
    """Which regime data needs, and what the settings say."""
    needed = samples_needed(settings)
    enough = f"{found.per_user} of {found.users} users have {needed} samples or more"
    asked = settings.split.regime
    if by_user:
        told = "as is set" if asked == "by_user" else f"set data.split.regime: by_user (it is {asked})"
        return f"{enough}, which a split of each user's own samples needs (data.min_samples): {told}"
    if asked == "by_user":
        return f"{enough}: data.split.regime: per_user would do, which gives every user a search"
    return f"{enough}: data.split.regime: per_user"


def _numbers(found: Statistics) -> Iterator[tuple[str, str]]:
    """The rows of the paper's Table 1, and a few more."""
    yield "users", f"{found.users:,}"
    yield "samples", f"{found.samples:,}"
    yield "samples a user, mean", f"{found.samples_per_user:.1f}"
    yield "samples a user, fewest to most", f"{found.fewest_samples:,} to {found.most_samples:,}"
    yield "history texts a user, mean", f"{found.history:.1f}"
    yield "words a history text, mean", f"{found.words_per_text:.1f}"
    yield "words a query, mean", f"{found.words_per_query:.1f}"
    yield "words a response, mean", f"{found.words_per_response:.1f}"
    if found.labelled:
        yield "samples with a label", f"{found.labelled:,}"
