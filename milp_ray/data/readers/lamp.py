"""The reader of LaMP, tasks 1 to 7: ``*_questions.json`` and, beside it, ``*_outputs.json``.

A questions file is a list of ``{"id", "input", "profile": [item, …], "user_id"?}``, an outputs file
``{"task": "LaMP_4", "golds": [{"id", "output"}, …]}``; ``data.files.outputs`` names it where it
does not lie beside. Both splits, by user and by time, have this form. **A user** is a ``user_id``,
or, where the file has none, a question: LaMP's split by user asks each person one. The history are
the items of the profile by date (:mod:`.profiles`), the samples the questions; with
``data.split.regime: per_user``, which is the default, the exchanges that the profile gives as well,
which come first, so that the question is a test sample. Responses of tasks 1 to 3 are labels, for
accuracy (1, 2) or MAE (3). Task 2 may be the movies or the older news, which the profile tells;
task 6 has to be made from the Avocado mails.

:func:`predictions` gives responses in LaMP's own form, for its evaluation. That knows one list of
labels for task 2 and takes all answers outside it for equal: an evaluator of the movies finds the
older news right whatever is predicted, and the other way round.

Source: docs/references.md, Salemi 2024.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from milp_ray.data.labels import LABELS
from milp_ray.data.readers import ReadResult, Source, register
from milp_ray.data.readers.json_list import JsonList
from milp_ray.data.readers.profiles import Item, ProfileTask, Question, profile_of, users_of
from milp_ray.data.readers.rows import cell_text
from milp_ray.data.readers.source import joint_fingerprint
from milp_ray.data.readers.strict import Fault, Faults, kind_of, read_json
from milp_ray.data.records import Sample
from milp_ray.errors import DataError, Problem

MAX_FILE_BYTES = 1 << 30

_QUESTIONS, _OUTPUTS = "_questions.json", "_outputs.json"
_TASK = re.compile(r"LaMP[_-]?([1-7])[A-Za-z]?")
_MOVIES, _NEWS = (", ".join(LABELS[name]) for name in ("lamp_2", "lamp_2_old"))


def _tweet(item: Item) -> tuple[str, str] | None:
    """The first fifth of a tweet's words, and the rest; LaMP's own baseline draws a share."""
    words = item["text"].split()
    first = max(1, len(words) // 5)
    if len(words) < 4:
        return None
    return f"Go on with this tweet: {' '.join(words[:first])}", " ".join(words[first:])


_TASKS = {
    "1": ProfileTask(
        "LaMP-1",
        ("title", "abstract"),
        lambda item: f"{item['title']}\n{item['abstract']}",
        lambda item: (f"Write the abstract of the paper called: {item['title']}", item["abstract"]),
        LABELS["lamp_1"],
    ),
    "2": ProfileTask(
        "LaMP-2",
        ("description", "tag"),
        lambda item: f"{item['description']}\nTag: {item['tag']}",
        lambda item: (f"Tag this movie with one of {_MOVIES}: {item['description']}", item["tag"]),
        LABELS["lamp_2"],
        labelled_pairs=True,
    ),
    "2 news": ProfileTask(
        "LaMP-2 (news)",
        ("text", "title", "category"),
        lambda item: f"{item['title']}\n{item['text']}\nCategory: {item['category']}",
        lambda item: (f"Which category of {_NEWS} is this article of? {item['text']}", item["category"]),
        LABELS["lamp_2_old"],
        labelled_pairs=True,
    ),
    "3": ProfileTask(
        "LaMP-3",
        ("text", "score"),
        lambda item: f"{item['text']}\nScore: {item['score']}",
        lambda item: (f"Score this review from 1 to 5: {item['text']}", item["score"]),
        LABELS["lamp_3"],
        labelled_pairs=True,
    ),
    "4": ProfileTask(
        "LaMP-4",
        ("title", "text"),
        lambda item: f"{item['title']}\n{item['text']}",
        lambda item: (f"Write the headline of this article: {item['text']}", item["title"]),
    ),
    "5": ProfileTask(
        "LaMP-5",
        ("title", "abstract"),
        lambda item: f"{item['title']}\n{item['abstract']}",
        lambda item: (f"Give the paper with this abstract a title: {item['abstract']}", item["title"]),
    ),
    "6": ProfileTask(
        "LaMP-6",
        ("title", "text"),
        lambda item: f"{item['title']}\n{item['text']}",
        lambda item: (f"Write the subject of this mail: {item['text']}", item["title"]),
    ),
    "7": ProfileTask("LaMP-7", ("text",), lambda item: item["text"], _tweet),
}


def _of_source(source: Source, samples: Sequence[Sample], responses: Sequence[str]) -> str:
    return predictions(f"LaMP_{_golds(_outputs_of(source))[0]}", samples, responses)


@register(
    "lamp",
    users="a user_id; where there is none, a question with its profile",
    licence="CC BY-NC-SA 4.0; of the texts, their sources' own",
    citation="Salemi et al., ACL 2024 (lamp-benchmark.github.io)",
    files=("outputs",),
    predictions=_of_source,
)
def read_lamp(source: Source) -> ReadResult:
    """Read a split's questions with their outputs.

    Raises:
        DataError: a file cannot be read or is missing, as the test split's outputs are; or with all
            questions that are malformed or have no output.
    """
    asked = JsonList(source.path, 'a list of {"id", "input", "profile"}')
    # A file that is no list is told before one that is not there.
    first = next((item for item in asked if isinstance(item, dict) and item.get("profile")), None)
    number, golds, other = _golds(_outputs_of(source))
    task = _TASKS["2 news" if number == "2" and _is_news(first) else number]
    faults = Faults(str(source.path))
    dropped: Counter[str] = Counter()
    questions: list[Question] = []
    seen: set[str] = set()
    for i, item in enumerate(asked):
        try:
            question = _question(item, golds, task, dropped)
            if question.source_id in seen:
                raise Fault("the id is that of a question before it", "each question once")
        except Fault as fault:
            faults.add(fault.at(f"{source.path}: question {i}"))
            continue
        seen.add(question.source_id)
        questions.append(question)
    faults.raise_if_any()
    users, skipped = users_of(questions, task, pairs=source.settings.split.regime == "per_user")
    return ReadResult(users, skipped, joint_fingerprint(asked.fingerprint, other), dict(dropped))


def predictions(task: str, samples: Sequence[Sample], responses: Sequence[str]) -> str:
    """Responses as a JSON text of LaMP's own form, which its evaluation reads beside the golds.

    Args:
        task: as the outputs file has it: "LaMP_4".
        samples: any that :func:`read_lamp` gave; those that are no questions are left out.
        responses: one for each sample.

    Raises:
        ValueError: not as many responses as samples, or a question twice.
    """
    golds: dict[str, str] = {}
    for sample, response in zip(samples, responses, strict=True):
        if sample.source_id is None:
            continue
        if sample.source_id in golds:
            raise ValueError("a question has two responses")
        golds[sample.source_id] = response
    content = {"task": task, "golds": [{"id": key, "output": text} for key, text in golds.items()]}
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def _question(item: object, golds: dict[str, str], task: ProfileTask, dropped: Counter[str]) -> Question:
    if not isinstance(item, dict):
        raise Fault(f"it is {kind_of(item)}", "an object with id, input and profile")
    source_id = _text(item, "id", single_line=True)
    query = _text(item, "input")
    profile = profile_of(item.get("profile"), task, dropped)
    if source_id not in golds:
        fact = "it has no output in the outputs file"
        raise Fault(fact, "an output for each question", "is that the same split?")
    user_id = cell_text(item.get("user_id"), "user_id", single_line=True) or source_id
    return Question(source_id, user_id, query, golds[source_id], profile)


def _outputs_of(source: Source) -> Path:
    path = source.further("outputs") or source.beside(_outputs_name)
    if path is None:
        raise _no_outputs(source)
    return path


def _golds(path: Path) -> tuple[str, dict[str, str], str]:
    """A task's number, its outputs by question, and the file's fingerprint."""
    value, fingerprint = read_json(path, MAX_FILE_BYTES)
    task = value.get("task") if isinstance(value, dict) else None
    found = _TASK.fullmatch(task) if isinstance(task, str) else None
    items = value.get("golds") if isinstance(value, dict) else None
    if found is None or not isinstance(items, list):
        expected = '{"task": "LaMP_1" to "LaMP_7", "golds": [{"id", "output"}, …]}'
        raise DataError(str(path), [Problem("", "is no outputs file", expected, "see docs/data.md")])
    faults = Faults(str(path))
    golds: dict[str, str] = {}
    for i, item in enumerate(items):
        try:
            if not isinstance(item, dict):
                raise Fault(f"it is {kind_of(item)}", "an object with id and output")
            key = _text(item, "id", single_line=True)
            if key in golds:
                raise Fault("the id is that of an output before it", "each output once")
            golds[key] = _text(item, "output")
        except Fault as fault:
            faults.add(fault.at(f"{path}: golds[{i}]"))
    faults.raise_if_any()
    return found.group(1), golds, fingerprint


def _text(item: dict[str, object], key: str, *, single_line: bool = False) -> str:
    found = cell_text(item.get(key), key, single_line=single_line)
    if found is None:
        raise Fault(f"{key} is missing or empty", "a text")
    return found


def _is_news(question: object) -> bool:
    profile = question.get("profile") if isinstance(question, dict) else None
    first = profile[0] if isinstance(profile, list) and profile else None
    return isinstance(first, dict) and "category" in first


def _outputs_name(name: str) -> str:
    return name.removesuffix(_QUESTIONS) + _OUTPUTS if name.endswith(_QUESTIONS) else ""


def _no_outputs(source: Source) -> DataError:
    name = source.name()
    wanted = _outputs_name(name.removesuffix(".gz"))
    fact = f"there is no {wanted} beside it" if wanted else "no outputs file is named"
    remedy = "give it in data.files.outputs"
    if name.startswith("test"):
        remedy = "take the train or the dev split: LaMP keeps the outputs of its test split to itself"
    return DataError(str(source.path), [Problem("", fact, "the outputs of the questions", remedy)])
