"""The reader of LongLaMP: abstracts, topics and product reviews, in parquet, JSON or JSON lines.

A row has ``input``, ``output`` and ``profile``, a list of a person's earlier works: ``title,
abstract`` (abstracts), ``input, output`` (topics), ``reviewText, summary, overall, description``
(reviews); the first one tells the task. **A user** is whoever ``user_id``, ``reviewerId``,
``author`` or ``name`` names; a row without any of them is a user of its own, ``row-<number>``. The
rest is as in LaMP (:mod:`.lamp`), whose split by user and by time it has, too.

Source: docs/references.md, Kumar 2024.
"""

from __future__ import annotations

from collections import Counter

from milp_ray.data.readers import ReadResult, Source, register
from milp_ray.data.readers.profiles import ProfileTask, Question, profile_of, users_of
from milp_ray.data.readers.rows import Row, Table, cell_text
from milp_ray.data.readers.strict import Fault, Faults

NO_TEXT = "rows without an input or an output"

_NEEDED = ("input", "output", "profile")
_USER = ("user_id", "reviewerId", "reviewerID", "author", "name")
_ID = ("id", "question_id")
_TASKS = (
    ProfileTask(
        "product reviews",
        ("reviewText", "summary", "overall", "description"),
        lambda item: f"{item['summary']}\n{item['reviewText']}",
        lambda item: (
            f"Write a review called {item['summary']!r}, rated {item['overall']} of 5, of this product: "
            + item["description"],
            item["reviewText"],
        ),
    ),
    ProfileTask(
        "abstracts",
        ("title", "abstract"),
        lambda item: f"{item['title']}\n{item['abstract']}",
        lambda item: (f"Write the abstract of the paper called: {item['title']}", item["abstract"]),
    ),
    ProfileTask(
        "topics",
        ("input", "output"),
        lambda item: f"{item['input']}\n{item['output']}",
        lambda item: (item["input"], item["output"]),
    ),
)


@register(
    "longlamp",
    users="whoever user_id, reviewerId, author or name names; else a row with its profile",
    licence="see its dataset card; of the texts, their sources' own",
    citation="Kumar et al., LongLaMP, arXiv:2407.11016",
)
def read_longlamp(source: Source) -> ReadResult:
    """Read a split of a task.

    Raises:
        DataError: it cannot be read, lacks a column, or with the problems of its rows.
    """
    faults = Faults(str(source.path))
    remedy = "name a split of LongLaMP: its rows have input, output and profile"
    table = Table(source.path, _NEEDED, (*_USER, *_ID), faults, remedy)
    dropped: Counter[str] = Counter()
    questions: list[Question] = []
    task: ProfileTask | None = None
    for number, row in enumerate(table):
        try:
            task = task or _task(row.cells.get("profile"))
            question = _question(row, number, task or _TASKS[0], dropped)
        except Fault as fault:
            faults.add(fault.at(row.where))
            continue
        if question is None:
            dropped[NO_TEXT] += 1
        else:
            questions.append(question)
    faults.raise_if_any()
    pairs = source.settings.split.regime == "per_user"
    users, skipped = users_of(questions, task or _TASKS[0], pairs=pairs)
    return ReadResult(users, skipped, table.fingerprint, dict(dropped))


def _question(row: Row, number: int, task: ProfileTask, dropped: Counter[str]) -> Question | None:
    query, response = (cell_text(row.cells.get(key), key) for key in ("input", "output"))
    profile = profile_of(row.cells.get("profile"), task, dropped)
    if query is None or response is None:
        return None
    own = f"row-{number}"
    return Question(_first(row, _ID) or own, _first(row, _USER) or own, query, response, profile)


def _task(profile: object) -> ProfileTask | None:
    """The task whose keys a profile's first item has; None for an empty profile.

    Raises:
        Fault: it has those of none.
    """
    first = profile[0] if isinstance(profile, list) and profile else None
    if not isinstance(first, dict):
        return None
    found = next((task for task in _TASKS if set(task.needs) <= set(first)), None)
    if found is None:
        expected = "; or ".join(f"{', '.join(task.needs)} ({task.name})" for task in _TASKS)
        raise Fault("profile[0] has the keys of no task", expected)
    return found


def _first(row: Row, keys: tuple[str, ...]) -> str | None:
    for key in keys:
        if (found := cell_text(row.cells.get(key), key, single_line=True)) is not None:
            return found
    return None
