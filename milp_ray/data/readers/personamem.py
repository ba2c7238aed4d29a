"""The reader of PersonaMem, version 1: ``questions_*.csv`` and ``shared_contexts_*.jsonl``.

A row of the first asks one question of a conversation history of the second, at
``end_index_in_shared_context``: **only the messages before it may be known**, which is what
``n_hist`` says. The contexts file lies beside the questions, or is named ``data.files.contexts``.

**A user** is a context, ``shared_context_id``: one course of one persona's conversations. A persona
may have several, which share what it says, so that users of one persona are in several parts of a
split by user. The history are the messages of user and assistant, up to the last question; the
persona, which the system message tells, is the profile, which nothing is trained on. The response
is the option that is right, without its letter, which is the sample's label; ``choices`` are all
options.

Source: docs/references.md, Jiang 2025.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from milp_ray.data.readers import ReadResult, Source, register
from milp_ray.data.readers.lines import MAX_LINE_BYTES, ValueLines
from milp_ray.data.readers.literals import parse_record
from milp_ray.data.readers.messages import turns
from milp_ray.data.readers.rows import Row, Table, cell_text
from milp_ray.data.readers.source import joint_fingerprint
from milp_ray.data.readers.strict import Fault, Faults, LineFile, check_text, kind_of, parse
from milp_ray.data.readers.timelines import NO_HISTORY
from milp_ray.data.records import Sample, UserRecord
from milp_ray.errors import DataError, Problem

_CONTEXT, _END = "shared_context_id", "end_index_in_shared_context"
_QUERY = ("user_question_or_message", "question")
_NEEDED = (_CONTEXT, _END, "correct_answer", "all_options")
_CONTEXTS = "an object with one key, a context's id, and its messages"
_OPTION = re.compile(r"\(([a-z])\)\s*(.*)", re.DOTALL)
_TAGGED = re.compile(r"\w[\w ]{0,30}: ")


@dataclass(frozen=True, slots=True)
class _Context:
    """``places[i]``: how many texts of the history are among the first i messages."""

    history: tuple[str, ...]
    places: tuple[int, ...]
    persona: str | None


@register(
    "personamem",
    users="one conversation history (shared_context_id); a persona may have several",
    licence="MIT",
    citation="Jiang et al., PersonaMem, arXiv:2504.14225",
    files=("contexts",),
)
def read_personamem(source: Source) -> ReadResult:
    """Read questions and the conversations that they are asked in.

    Raises:
        DataError: a file cannot be read or is missing, or with the problems of their lines.
    """
    faults = Faults(str(source.path))
    remedy = "name questions_32k.csv, questions_128k.csv or questions_1M.csv of PersonaMem-v1"
    table = Table(source.path, _NEEDED, (*_QUERY, "question_id"), faults, remedy)
    rows = list(table)
    path = source.further("contexts") or source.beside(_contexts_name)
    if path is None:
        raise _no_contexts(source)
    contexts, fingerprint = _contexts(path)
    asked: dict[str, list[Sample]] = {}
    for row in rows:
        try:
            context_id, sample = _asked(row, contexts)
        except Fault as fault:
            faults.add(fault.at(row.where))
            continue
        asked.setdefault(context_id, []).append(sample)
    faults.raise_if_any()
    users: list[UserRecord] = []
    skipped = 0
    for context_id, samples in asked.items():
        context = contexts[context_id]
        last = max(sample.n_hist or 0 for sample in samples)
        profile = None if context.persona is None else {"persona": context.persona}
        if last:
            users.append(UserRecord(context_id, context.history[:last], tuple(samples), profile))
        else:
            skipped += 1
    return ReadResult(
        tuple(users),
        {NO_HISTORY: skipped} if skipped else {},
        joint_fingerprint(table.fingerprint, fingerprint),
    )


def _asked(row: Row, contexts: Mapping[str, _Context]) -> tuple[str, Sample]:
    context_id = cell_text(row.cells.get(_CONTEXT), _CONTEXT, single_line=True)
    context = contexts.get(context_id or "")
    if context is None or context_id is None:
        fact = "its context is not in the contexts file"
        raise Fault(fact, "a context of each question", "are both of one size (32k, 128k, 1M)?")
    query = next((text for key in _QUERY if (text := cell_text(row.cells.get(key), key))), None)
    if query is None:
        raise Fault("it has no question", " or ".join(_QUERY))
    end = cell_text(row.cells.get(_END), _END, single_line=True) or ""
    if not re.fullmatch(r"[0-9]{1,9}", end) or int(end) >= len(context.places):
        raise Fault(f"{_END} is out of range", f"0 to {len(context.places) - 1}, the context's messages")
    options = _options(row.cells.get("all_options"))
    label = (cell_text(row.cells.get("correct_answer"), "correct_answer", single_line=True) or "").strip()
    if label not in options:
        raise Fault("correct_answer is none of its options", "(a), (b), …")
    sample = Sample(
        query,
        options[label],
        n_hist=context.places[int(end)],
        label=label,
        choices=tuple(options.values()),
        source_id=cell_text(row.cells.get("question_id"), "question_id", single_line=True),
    )
    return context_id, sample


def _options(value: object) -> dict[str, str]:
    """Letter in brackets -> text; the column is a list in Python's notation or in JSON's."""
    items = parse_record(value.encode("utf-8", "replace")) if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise Fault("all_options is no list", "a list of texts that begin with (a), (b), …")
    found: dict[str, str] = {}
    for i, item in enumerate(items):
        option = _OPTION.fullmatch(check_text(item, f"all_options[{i}]"))
        if option is None or f"({option.group(1)})" in found or not option.group(2).strip():
            raise Fault(f"all_options[{i}] is no option", "a letter in brackets, and a text")
        found[f"({option.group(1)})"] = option.group(2).strip()
    return found


def _contexts(path: Path) -> tuple[dict[str, _Context], str]:
    faults = Faults(str(path))
    file = LineFile(path, MAX_LINE_BYTES, "text")
    contexts: dict[str, _Context] = {}
    for line in ValueLines(file, _one_context, faults, _CONTEXTS, "name the contexts of PersonaMem-v1"):
        context_id, context = line.value
        if context_id in contexts:
            faults.add(Problem(line.where, "the id is that of a line before it", "each context once"))
        contexts[context_id] = context
    faults.raise_if_any()
    return contexts, file.fingerprint


def _one_context(raw: bytes) -> tuple[str, _Context]:
    value = parse(raw)
    if not isinstance(value, dict) or len(value) != 1:
        raise Fault(f"the line is {kind_of(value)} of another shape", _CONTEXTS)
    ((context_id, messages),) = value.items()
    if not isinstance(messages, list):
        raise Fault(f"the messages are {kind_of(messages)}", "a list")
    history: list[str] = []
    places = [0]
    persona: str | None = None
    for message in messages:
        for role, text in turns({"messages": [message]}):
            history.append(text if _TAGGED.match(text) else f"{role}: {text}")
        places.append(len(history))
        if persona is None and message["role"] == "system" and isinstance(message.get("content"), str):
            persona = message["content"].strip() or None
    return context_id, _Context(tuple(history), tuple(places), persona)


def _contexts_name(name: str) -> str:
    if not (name.startswith("questions_") and name.endswith(".csv")):
        return ""
    return "shared_contexts_" + name.removeprefix("questions_").removesuffix(".csv") + ".jsonl"


def _no_contexts(source: Source) -> DataError:
    wanted = _contexts_name(source.name().removesuffix(".gz"))
    fact = f"there is no {wanted} beside it" if wanted else "no contexts file is named"
    remedy = "give it in data.files.contexts"
    expected = "the conversations that the questions are about"
    return DataError(str(source.path), [Problem("", fact, expected, remedy)])
