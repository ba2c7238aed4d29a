"""The reader of tables: one exchange a row, in CSV, TSV, parquet, a JSON list, or JSON lines.

``data.columns`` says which column holds what; a column that it does not name is the one called as
here: ``user``, ``query``, ``response``, and, where they are there, ``time``, ``context`` and
``text``. A user is whoever the column ``user`` names. Rows are put in order by ``time``, or stay in
the file's.

What goes into the history is the row's ``text``, where there is one: name the query's column for it
if users ask, the response's if they answer. Without it, it is the query and then the response. A
row with a text and no query or response is history alone. So a row's sample knows what came before
the row, and, where there is no ``text``, its own query.
"""

from __future__ import annotations

from collections import Counter

from milp_ray.config.models import ColumnSettings
from milp_ray.data.readers import ReadResult, Source, register
from milp_ray.data.readers.rows import Row, Table, cell_text
from milp_ray.data.readers.strict import Fault, Faults
from milp_ray.data.readers.timelines import Moment, Timelines, seconds
from milp_ray.data.records import Sample
from milp_ray.errors import Problem

NO_USER = "rows without a user"
NO_TEXTS = "rows without a query and a response"

_NEEDED = ("user", "query", "response")


@register(
    "table",
    users="whoever the column `user` names",
    licence="your own",
    columns=tuple(ColumnSettings.model_fields),
)
def read_table(source: Source) -> ReadResult:
    """Read a table of exchanges.

    Example:
        >>> path = folder / "mail.csv"
        >>> lines = ["user,query,response", "ann,Tea?,Yes.", "ann,Milk?,No."]
        >>> _ = path.write_text(chr(10).join(lines), encoding="utf-8")
        >>> read_table(Source(path)).users[0].history
        ('Tea?', 'Yes.', 'Milk?', 'No.')

    Raises:
        DataError: it cannot be read, lacks a column, or with the problems of its rows.
    """
    named = source.settings.columns
    column = {role: getattr(named, role) or role for role in ColumnSettings.model_fields}
    faults = Faults(str(source.path))
    asked_for = [role for role in column if role in _NEEDED or getattr(named, role) is not None]
    table = Table(source.path, [column[role] for role in asked_for], set(column.values()), faults)
    timelines = Timelines()
    dropped: Counter[str] = Counter()
    times: set[bool] = set()
    for row in table:
        try:
            cells = {role: row.cells.get(name) for role, name in column.items()}
            reason = _note(cells, timelines, times)
        except Fault as fault:
            faults.add(fault.at(row.where))
            continue
        if reason:
            dropped[reason] += 1
        _same_kind(times, row, faults)
    faults.raise_if_any()
    users, skipped = timelines.users()
    return ReadResult(users, skipped, table.fingerprint, dict(dropped))


def _note(cells: dict[str, object], timelines: Timelines, times: set[bool]) -> str:
    """Add a row to its user's timeline; the reason where it gives nothing."""
    user_id = cell_text(cells["user"], "user", single_line=True)
    query, response, context, text = (
        cell_text(cells[role], role) for role in ("query", "response", "context", "text")
    )
    time = seconds(cells["time"], "time")
    if user_id is None:
        return NO_USER
    exchange = query is not None and response is not None
    if not exchange and text is None:
        return NO_TEXTS
    times.add(time is not None)
    own = (text,) if text is not None else (query, response)
    samples: tuple[Sample, ...] = ()
    if query is not None and response is not None:
        samples = (Sample(query, response, context, n_hist=0 if text is not None else 1),)
    timelines.add(user_id, Moment(time, tuple(one for one in own if one is not None), samples))
    return ""


def _same_kind(times: set[bool], row: Row, faults: Faults) -> None:
    """Some rows with a time and some without have no order."""
    if len(times) > 1:
        remedy = "fill the column in, or leave it out, which takes the file's order"
        faults.add(Problem(row.where, "time is empty in some rows, not in all", "a time in each row", remedy))
        times.clear()
