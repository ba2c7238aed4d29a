"""The reader for milp_ray's own format: JSON lines, one user a line.

``{"user_id", "profile"?: {name: text} | null, "history": [text, oldest first], "samples":
[{"query", "response", "context"?, "n_hist"?, "label"?, "choices"?, "id"?, "src"?}]}``. ``label``,
``choices`` and ``id`` are those of data sets that score labels (:class:`.Sample`); ``src`` may hold
anything and is ignored.
Reading is streaming and strict; every problem of the file is reported at once, by line and byte
offset and without any content. Blank lines are passed over. A file that gzip packed is read as it
is; one of another kind, or of which no line is a user record, is *one* problem. Whether a user has
enough data is *not* decided here (see data/splits.py), except that a user without history or
without samples is skipped and counted.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Sequence

from milp_ray.data.readers import ReadResult, Source, register
from milp_ray.data.readers.file_kinds import EXPECTED
from milp_ray.data.readers.strict import NOT_UTF8, Fault, Faults, Line, LineFile, check_text, kind_of, parse
from milp_ray.data.records import Sample, UserRecord
from milp_ray.errors import DataError, Problem

MAX_LINE_BYTES = 16 * 1024 * 1024

NO_HISTORY = "no history"
NO_SAMPLES = "no samples"

_USER_KEYS = ("user_id", "profile", "history", "samples")
_SAMPLE_KEYS = ("query", "response", "context", "n_hist", "label", "choices", "id", "src")


@register("jsonl", users="one line is one user", licence="your own")
def read_jsonl(source: Source, *, max_line_bytes: int = MAX_LINE_BYTES) -> ReadResult:
    """Read a file of user records; beside these one line (``max_line_bytes``) is held at most.

    Example:
        >>> person = UserRecord("ann", ("I like tea.",), (Sample("What do you drink?", "Tea."),))
        >>> path = folder / "users.jsonl"
        >>> _ = path.write_text(line_of(person), encoding="utf-8")
        >>> result = read_jsonl(Source(path))
        >>> result.users == (person,), dict(result.skipped)
        (True, {})
        >>> result.users[0]  # texts and ids stay out of every repr
        UserRecord(history=1, samples=1)

    Raises:
        DataError: the file cannot be read, or with its problems (the first 20, and how many more).
    """
    path = source.path
    file = LineFile(path, max_line_bytes)
    faults = Faults(str(path))
    users: list[UserRecord] = []
    skipped: Counter[str] = Counter()
    seen: dict[str, int] = {}
    filled, records = 0, 0
    first_fault, remedies = "", set[str]()
    for line in file:
        found: list[Fault] = []
        user = _user_of(line, max_line_bytes, found)
        filled += line.raw is None or bool(line.raw.strip())
        records += user is not None
        if found and not first_fault:
            first_fault = f"line {line.number} (byte {line.offset + found[0].offset}): {found[0].fact}"
        if user is not None and user.user_id:
            first = seen.setdefault(user.user_id, line.number)
            if first != line.number:
                found.append(Fault(f"user_id is the same as on line {first}", "each user on one line"))
        remedies.update(fault.remedy for fault in found)
        for fault in found:
            faults.add(fault.at(f"{path}:{line.number} (byte {line.offset + fault.offset})"))
        if user is None or faults.count:  # once the file is faulty, its records are not needed any more
            continue
        reason = NO_HISTORY if not user.history else NO_SAMPLES if not user.samples else None
        if reason:
            skipped[reason] += 1
        else:
            users.append(user)
    if filled > 1 and not records:
        fact = f"none of its {filled} lines is a user record ({first_fault})"
        remedy = NOT_UTF8 if remedies == {NOT_UTF8} else "convert it: docs/data.md has the keys"
        raise DataError(str(path), [Problem("", fact, EXPECTED["JSON lines"], remedy)])
    faults.raise_if_any()
    return ReadResult(tuple(users), dict(skipped), file.fingerprint)


def line_of(user: UserRecord) -> str:
    """A user record as one line, with its end; :func:`read_jsonl` reads it back equal."""
    samples: list[dict[str, object]] = []
    for sample in user.samples:
        item: dict[str, object] = {"query": sample.query, "response": sample.response}
        if sample.context is not None:
            item["context"] = sample.context
        if sample.n_hist is not None:
            item["n_hist"] = sample.n_hist
        if sample.label is not None:
            item["label"] = sample.label
        if sample.choices:
            item["choices"] = list(sample.choices)
        if sample.source_id is not None:
            item["id"] = sample.source_id
        samples.append(item)
    profile = None if user.profile is None else dict(user.profile)
    record = {"user_id": user.user_id, "profile": profile, "history": list(user.history), "samples": samples}
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _user_of(line: Line, max_line_bytes: int, found: list[Fault]) -> UserRecord | None:
    """The record of a line, None where it gives none; faults are appended to ``found``."""
    if line.raw is None:
        fact = f"the line is longer than {max_line_bytes} bytes"
        expected = f"at most {max_line_bytes} bytes a user"
        found.append(Fault(fact, expected, "shorten the user's history"))
        return None
    if not line.raw.strip():
        return None
    try:
        record = parse(line.raw)
    except Fault as fault:
        found.append(fault)
        return None
    if not isinstance(record, dict):
        found.append(Fault(f"the line is {kind_of(record)}", "an object with user_id, history and samples"))
        return None
    if record.keys().isdisjoint(_USER_KEYS):
        expected = "an object with user_id, history and samples"
        found.append(Fault("the object has none of a user record's keys", expected, "docs/data.md has them"))
        return None
    _check_keys(record, _USER_KEYS, ("user_id", "history", "samples"), "", found)
    fields = _Fields(record, "", found)
    history = tuple(_text(text, f"history[{i}]", found) for i, text in enumerate(fields.items("history")))
    samples = tuple(_sample(it, i, len(history), found) for i, it in enumerate(fields.items("samples")))
    user_id = fields.text("user_id", single_line=True)
    return UserRecord(user_id, history, samples, _profile(record.get("profile"), found))


class _Fields:
    """Typed access to an object's keys: a fault is noted, and an empty value returned."""

    def __init__(self, record: dict[str, object], place: str, found: list[Fault]) -> None:
        self._record, self._place, self._found = record, place, found

    def text(self, key: str, *, single_line: bool = False) -> str:
        if key not in self._record:  # reported by _check_keys
            return ""
        return _text(self._record[key], self._place + key, self._found, single_line=single_line)

    def optional_text(self, key: str) -> str | None:
        return None if self._record.get(key) is None else self.text(key, single_line=True)

    def items(self, key: str) -> list[object]:
        value = self._record.get(key, [])
        if isinstance(value, list):
            return value
        self._found.append(Fault(f"{self._place}{key} is {kind_of(value)}", "a list"))
        return []


def _text(value: object, name: str, found: list[Fault], *, single_line: bool = False) -> str:
    try:
        return check_text(value, name, single_line=single_line)
    except Fault as fault:
        found.append(fault)
        return ""


def _sample(item: object, index: int, history_length: int, found: list[Fault]) -> Sample:
    place = f"samples[{index}]"
    if not isinstance(item, dict):
        found.append(Fault(f"{place} is {kind_of(item)}", "an object with query and response"))
        return Sample("", "")
    _check_keys(item, _SAMPLE_KEYS, ("query", "response"), f"{place}: ", found)
    fields = _Fields(item, f"{place}.", found)
    context = item.get("context")
    n_hist = item.get("n_hist")
    if n_hist is not None and (type(n_hist) is not int or not 0 <= n_hist <= history_length):
        got = "out of range" if type(n_hist) is int else kind_of(n_hist)
        expected = f"a whole number from 0 to {history_length}, the length of history"
        remedy = "leave it out to have it derived from the history"
        found.append(Fault(f"{place}.n_hist is {got}", expected, remedy))
        n_hist = None
    return Sample(
        query=fields.text("query"),
        response=fields.text("response"),
        context=None if context in (None, "") else fields.text("context"),
        n_hist=n_hist,
        label=fields.optional_text("label"),
        choices=tuple(
            _text(choice, f"{place}.choices[{i}]", found) for i, choice in enumerate(fields.items("choices"))
        ),
        source_id=fields.optional_text("id"),
    )


def _profile(value: object, found: list[Fault]) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        found.append(Fault(f"profile is {kind_of(value)}", "an object of texts, or null"))
        return None
    # Names and values of a profile are data: only their position is ever shown.
    return {
        _text(name, f"name {i} in profile", found): text
        if text == ""
        else _text(text, f"value {i} in profile", found)
        for i, (name, text) in enumerate(value.items())
    }


def _check_keys(
    item: dict[str, object], valid: Sequence[str], needed: Sequence[str], place: str, found: list[Fault]
) -> None:
    for key in item:
        if key not in valid:
            # An unknown key may be anything, even a name: only a valid one is ever shown.
            close = difflib.get_close_matches(key[:100], valid, n=1, cutoff=0.5)
            remedy = f"did you mean {close[0]!r}?" if close else "remove it"
            fact = f"{place}unknown key of {len(key)} characters"
            found.append(Fault(fact, "one of " + ", ".join(valid), remedy))
    expected = "the keys " + ", ".join(needed)
    found.extend(Fault(f"{place}{key} is missing", expected) for key in needed if key not in item)
