"""Answers with and without a memory, side by side on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from milp_ray.serving.respond import Reply


def replies_view(replies: Sequence[Reply]) -> RenderableType:
    """A table a query: a row for the bare model, and one for each memory."""
    parts: list[RenderableType] = []
    for query in dict.fromkeys(reply.query for reply in replies):
        mine = [reply for reply in replies if reply.query == query]
        table = Table(title=Text(query), title_justify="left", show_lines=True)
        table.add_column("memory", no_wrap=True)
        table.add_column("answer", overflow="fold")
        table.add_row("none", Text(mine[0].base))
        for reply in mine:
            table.add_row(reply.alias, Text(reply.memory))
        parts += [table, Text()]
    return Group(*parts)
