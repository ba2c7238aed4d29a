"""The reader of MSP's dialogue files, Reddit among them: one line ``post###response###reference``.

Zhong et al.'s documentation separates the three parts by ``#``, their loader and their sample by
``###``; the file's first line tells which it is. A reference is texts between tabs: what their
refiners picked of the dialogue history. A newer form has five parts, whose references are of the
person, of similar people, and of the topic: only the first is the person's.

**Who a user is.** No line has a user id. The references are a person's own history (of the form of
three parts, with texts of similar people among them), so one line is one user, ``line-<number>``,
with one sample, for the by-user regime; two lines may well be one person's, and nothing says so.
Who has the ids gives them: ``data.files.users`` names a text with one id a line, in the same order.
Then a user is all lines of an id.

The references are no timeline: all of them are taken to precede the line's response.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from milp_ray.data.readers import ReadResult, Source, register
from milp_ray.data.readers.lines import MAX_LINE_BYTES, ValueLines
from milp_ray.data.readers.source import joint_fingerprint
from milp_ray.data.readers.strict import Fault, Faults, LineFile, check_text, decode
from milp_ray.data.readers.timelines import Moment, Timelines
from milp_ray.data.records import Sample
from milp_ray.errors import DataError, Problem

NO_TEXT = "lines without a post or a response"

_SEPARATORS = ("###", "#")
_LINE = "a line post###response###reference (or with # alone), references between tabs"


@dataclass(frozen=True, slots=True)
class _Exchange:
    post: str
    response: str
    history: tuple[str, ...]


@register(
    "reddit",
    users="one line is one user, unless files.users has an id for each line",
    licence="none named; Reddit's and Pchatbot's terms",
    citation="Zhong et al., NAACL 2022 (github.com/bangbangbang12315/MSP)",
    files=("users",),
)
def read_reddit(source: Source) -> ReadResult:
    """Read a dialogue file.

    Raises:
        DataError: it cannot be read, its ids are of another number, or with the problems of lines.
    """
    faults = Faults(str(source.path))
    file = LineFile(source.path, MAX_LINE_BYTES, "text")
    remedy = "name a file of MSP's form: docs/data.md"
    ids, prints = _ids(source.further("users"))
    dropped: Counter[str] = Counter()
    timelines = Timelines()
    told: dict[str, set[str]] = {}
    count = 0
    for line in ValueLines(file, _Parts(), faults, _LINE, remedy):
        count += 1
        exchange = line.value
        user_id = f"line-{count}" if ids is None else ids[count - 1] if count <= len(ids) else ""
        if not (exchange.post and exchange.response):
            dropped[NO_TEXT] += 1
            continue
        known = told.setdefault(user_id, set())
        texts = tuple(text for text in dict.fromkeys(exchange.history) if text not in known)
        known.update(texts)
        sample = Sample(exchange.post, exchange.response, n_hist=len(texts))
        timelines.add(user_id, Moment(None, texts, (sample,)))
    faults.raise_if_any()
    if ids is not None and len(ids) != count:
        fact = f"has {count} lines, and data.files.users {len(ids)}"
        raise DataError(str(source.path), [Problem("", fact, "one id for each line, in the same order")])
    users, skipped = timelines.users()
    return ReadResult(users, skipped, joint_fingerprint(file.fingerprint, *prints), dict(dropped))


class _Parts:
    """Takes lines apart, all by the separator of the first."""

    def __init__(self) -> None:
        self._separator = ""

    def __call__(self, raw: bytes) -> _Exchange:
        text = decode(raw.removesuffix(b"\r"))
        separator = self._separator or next((one for one in _SEPARATORS if one in text), _SEPARATORS[0])
        parts = text.split(separator)
        if len(parts) not in (3, 5):
            fact = f"has {len(parts)} parts between {separator}"
            remedy = "take the separator out of the texts, or use ### for it" if separator == "#" else ""
            raise Fault(fact, "3 (or 5) parts", remedy)
        self._separator = separator
        post, response, own = (part.strip() for part in parts[:3])
        history = tuple(check_text(one, "a reference") for one in map(str.strip, own.split("\t")) if one)
        for name, part in (("post", post), ("response", response)):
            if part:
                check_text(part, name)
        return _Exchange(post, response, history)


def _ids(path: Path | None) -> tuple[list[str] | None, list[str]]:
    """The user ids, one a line, and the file's fingerprint; None and nothing without a file."""
    if path is None:
        return None, []
    faults = Faults(str(path))
    file = LineFile(path, MAX_LINE_BYTES, "text")
    ids: list[str] = []
    for line in file:
        try:
            ids.append(check_text(decode(line.raw or b"").strip(), "the user id", single_line=True))
        except Fault as fault:
            faults.add(fault.at(f"{path}:{line.number}"))
    faults.raise_if_any()
    return ids, [file.fingerprint]
