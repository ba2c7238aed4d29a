"""The reader of Amazon's questions and answers, as Julian McAuley ships them (``qa_*.json.gz``).

One product or question a line, a JSON object or a Python literal: ``{asin, question, answer,
unixTime?}``, or ``{asin, questions: [{questionText, askerID?, answers: [{answerText, answererID?,
…}]}]}``. Gupta et al.'s form is read, too: ``{asin, questionText, answers: [{answerText, helpful}],
review_snippets?}``, whose snippets become the sample's context.

**Who a user is** depends on what the files name. Where answers have an ``answererID``, a user is
who answers; where only questions have an ``askerID``, who asks: the response is then the answer
that this person was given. Answers that nobody is named for are counted. A user's history is what
the person wrote, in order: answers, questions, and reviews, where ``data.files.reviews`` names a
file of them.

Many files name nobody. Then the reviews are needed (``{reviewerID, asin, reviewText, summary?,
unixReviewTime?}``), and a user is a reviewer: the history are the reviews, and a question about a
product goes to one who had reviewed it before it was answered, to each such reviewer in turn, the
newest review first. **The answer is not that person's own**; of several answers it is the one that
most people found helpful. That is how data sets of the kind of Deng et al.'s come to users, and why
a memory has little to learn about the responses there.

Most users have one or two samples: use the by-user regime. A person's first answer has nothing
before it, and is of use to a train user alone; reviews help there, too.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from milp_ray.data.readers import ReadResult, Source, register
from milp_ray.data.readers.lines import MAX_LINE_BYTES, Value, ValueLines
from milp_ray.data.readers.literals import parse_record
from milp_ray.data.readers.rows import cell_text
from milp_ray.data.readers.source import joint_fingerprint
from milp_ray.data.readers.strict import Fault, Faults, LineFile, kind_of
from milp_ray.data.readers.timelines import Moment, Timelines, seconds
from milp_ray.data.records import Sample
from milp_ray.errors import DataError, Problem

UNNAMED = "answers by nobody that the file names"
UNREVIEWED = "questions about products that no user had reviewed"
NO_TEXT = "questions, answers or reviews without a text"

_ASKER = ("askerID", "askerId", "questionerID", "questionerId")
_ANSWERER = ("answererID", "answererId", "reviewerID", "reviewerId")
_QUESTION = "an object with asin and question and answer, or questions (qa_*.json)"
_REVIEW = "an object with reviewerID, asin and reviewText (reviews_*.json)"
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DATE = re.compile(r"([A-Za-z]{3})[a-z]*\.? (\d{1,2}), (\d{4})")

Record = dict[str, object]


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    user: str | None
    time: float | None
    helpful: float


@dataclass(frozen=True, slots=True)
class _Question:
    product: str
    text: str
    user: str | None
    time: float | None
    context: str | None
    answers: tuple[_Answer, ...]


@dataclass(frozen=True, slots=True)
class _Review:
    user: str
    product: str
    text: str
    time: float | None


@register(
    "amazonqa",
    users="who answers (answererID) or asks (askerID); else a reviewer of the product (files.reviews)",
    licence="none named; for research",
    citation="Wan, McAuley, ICDM 2016; McAuley, Yang, WWW 2016",
    files=("reviews",),
)
def read_amazonqa(source: Source) -> ReadResult:
    """Read questions and answers, and reviews where the study names a file of them.

    Raises:
        DataError: a file cannot be read; nobody is named in the first and there is no second; or
            with the problems of their lines.
    """
    faults = Faults(str(source.path))
    dropped: Counter[str] = Counter()
    file = _lines(source.path)
    questions: list[_Question] = []
    for line in _records(file, _QUESTION, faults):
        questions += _asked(line, faults, dropped)
    faults.raise_if_any()
    reviews = source.further("reviews")
    if any(question.user or any(answer.user for answer in question.answers) for question in questions):
        timelines = _by_name(questions, dropped)
        named, fingerprints = timelines.ids(), [file.fingerprint]
        if reviews is not None:
            history = _Reviews(reviews)
            for review in history.of(named):
                timelines.add(review.user, Moment(review.time, (review.text,)))
            dropped.update(history.dropped)
            fingerprints.append(history.fingerprint)
    elif reviews is None:
        raise _nobody(source.path, len(questions))
    else:
        history = _Reviews(reviews)
        timelines = _by_review(questions, history, dropped)
        fingerprints = [file.fingerprint, history.fingerprint]
        dropped.update(history.dropped)
    users, skipped = timelines.users()
    return ReadResult(users, skipped, joint_fingerprint(*fingerprints), dict(dropped))


def _by_name(questions: list[_Question], dropped: Counter[str]) -> Timelines:
    timelines = Timelines()
    for question in questions:
        if question.user:
            timelines.add(question.user, Moment(question.time, (question.text,)))
        for answer in question.answers:
            sample = Sample(question.text, answer.text, question.context, n_hist=0)
            time = question.time if answer.time is None else answer.time
            if answer.user:
                timelines.add(answer.user, Moment(time, (answer.text,), (sample,)))
            elif question.user:
                timelines.add(question.user, Moment(time, (), (sample,)))
            else:
                dropped[UNNAMED] += 1
    return timelines


def _by_review(questions: list[_Question], reviews: _Reviews, dropped: Counter[str]) -> Timelines:
    """Each question with its best answer to a reviewer of the product, in turn."""
    reviewers = reviews.by_product({question.product for question in questions})
    turns: Counter[tuple[str, str]] = Counter()
    chosen: list[tuple[str, Moment]] = []
    for question in questions:
        if not question.answers:
            continue
        answer = max(question.answers, key=lambda one: one.helpful)
        time = question.time if answer.time is None else answer.time
        able = [
            user
            for reviewed, user in reversed(reviewers.get(question.product, []))
            if time is None or reviewed is None or reviewed < time
        ]
        if not able:
            dropped[UNREVIEWED] += 1
            continue
        user = min(able, key=lambda one: turns[question.product, one])
        turns[question.product, user] += 1
        sample = Sample(question.text, answer.text, question.context, n_hist=0)
        chosen.append((user, Moment(time, (), (sample,))))
    timelines = Timelines()
    for review in reviews.of({user for user, _ in chosen}):
        timelines.add(review.user, Moment(review.time, (review.text,)))
    for user, moment in chosen:
        timelines.add(user, moment)
    return timelines


class _Reviews:
    """A file of reviews, which is read as often as it is asked: it may be larger than memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fingerprint = ""
        self.dropped: Counter[str] = Counter()

    def by_product(self, products: set[str]) -> dict[str, list[tuple[float | None, str]]]:
        """When each of these products was reviewed, and by whom, oldest first."""
        found: dict[str, list[tuple[float | None, str]]] = defaultdict(list)
        for review in self._read():
            if review.product in products:
                found[review.product].append((review.time, review.user))
        for times in found.values():
            if all(time is not None for time, _ in times):
                times.sort(key=lambda one: one[0] or 0.0)
        return found

    def of(self, users: set[str]) -> Iterator[_Review]:
        """The reviews of these users, in the file's order."""
        return (review for review in self._read() if review.user in users)

    def _read(self) -> Iterator[_Review]:
        faults = Faults(str(self._path))
        file = _lines(self._path)
        self.dropped.clear()
        for line in _records(file, _REVIEW, faults):
            try:
                user, product, text, time = _review(line.value)
            except Fault as fault:
                faults.add(fault.at(line.where))
                continue
            if text:
                yield _Review(user, product, text, time)
            else:
                self.dropped[NO_TEXT] += 1
        faults.raise_if_any()
        self.fingerprint = file.fingerprint


def _review(record: Record) -> tuple[str, str, str, float | None]:
    user, product = (_needed(record, key) for key in ("reviewerID", "asin"))
    parts = [cell_text(record.get(key), key) for key in ("summary", "reviewText")]
    text = "\n".join(part for part in parts if part is not None)
    return user, product, text, seconds(record.get("unixReviewTime"), "unixReviewTime")


def _asked(line: Value[Record], faults: Faults, dropped: Counter[str]) -> list[_Question]:
    """The questions of a line; those without a text are counted."""
    record = line.value
    items = record.get("questions", [record])
    found: list[_Question] = []
    try:
        product = _needed(record, "asin")
        for item in _objects(items, "questions"):
            question = _question(item, product, dropped)
            if question is not None:
                found.append(question)
    except Fault as fault:
        faults.add(fault.at(line.where))
        return []
    return found


def _question(item: Record, product: str, dropped: Counter[str]) -> _Question | None:
    text = cell_text(item.get("questionText", item.get("question")), "the question")
    given = item.get("answers", [item] if "answer" in item else [])
    answers = [_answer(answer) for answer in _objects(given, "answers")]
    if text is None or None in answers:
        dropped[NO_TEXT] += answers.count(None) + (text is None)
    if text is None:
        return None
    snippets = item.get("review_snippets") or []
    if not isinstance(snippets, list):
        raise Fault(f"review_snippets is {kind_of(snippets)}", "a list of texts")
    parts = [cell_text(snippet, "review_snippets") for snippet in snippets]
    return _Question(
        product,
        text,
        _user(item, _ASKER),
        _time(item, ("questionUnixTime",), ("questionTime",)),
        "\n".join(part for part in parts if part is not None) or None,
        tuple(answer for answer in answers if answer is not None),
    )


def _answer(item: Record) -> _Answer | None:
    text = cell_text(item.get("answerText", item.get("answer")), "the answer")
    if text is None:
        return None
    helpful = item.get("helpful")
    votes = helpful[0] if isinstance(helpful, list) and helpful else 0
    time = _time(item, ("unixTime", "answerUnixTime"), ("answerTime",))
    number = votes if isinstance(votes, int | float) else 0
    return _Answer(text, _user(item, _ANSWERER), time, number)


def _user(item: Record, keys: tuple[str, ...]) -> str | None:
    for key in keys:
        if (found := cell_text(item.get(key), key, single_line=True)) is not None:
            return found
    return None


def _time(item: Record, numbers: tuple[str, ...], texts: tuple[str, ...]) -> float | None:
    """Seconds since 1970: a number, or a date such as "Aug 8, 2014", in any locale."""
    for key in numbers:
        if item.get(key) is not None:
            return seconds(item[key], key)
    for key in texts:
        value = item.get(key)
        if isinstance(value, str) and (date := _DATE.fullmatch(value.strip())):
            month, day, year = date.groups()
            if month.lower() in _MONTHS:
                number = _MONTHS.index(month.lower()) + 1
                return seconds(f"{year}-{number:02}-{int(day):02}", key)
    return None


def _needed(record: Record, key: str) -> str:
    found = cell_text(record.get(key), key, single_line=True)
    if found is None:
        raise Fault(f"{key} is missing", f"{key}: a text")
    return found


def _objects(value: object, name: str) -> list[Record]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Fault(f"{name} is no list of objects", "a list of objects")
    return value


def _lines(path: Path) -> LineFile:
    return LineFile(path, MAX_LINE_BYTES, "text")


def _records(file: LineFile, expected: str, faults: Faults) -> ValueLines[Record]:
    wanted = {"reviewText"} if expected == _REVIEW else {"question", "questions", "questionText"}

    def record(raw: bytes) -> Record:
        value = parse_record(raw)
        if not isinstance(value, dict):
            raise Fault(f"the line is {kind_of(value)}", expected)
        if wanted.isdisjoint(value):
            raise Fault("the object has none of its keys", expected)
        return value

    return ValueLines(file, record, faults, expected, "see docs/data.md for the files that are meant")


def _nobody(path: Path, questions: int) -> DataError:
    if not questions:
        fact, remedy = "holds no question", "check that data.path and data.format belong together"
        return DataError(str(path), [Problem("", fact, "questions and answers", remedy)])
    fact = f"none of its {questions} questions says who asked or answered"
    expected = "askerID or answererID in the questions, or a file of reviews whose writers become the users"
    remedy = (
        "give the reviews of the same category (data.files: {reviews: ./reviews_….json.gz}), or files that "
        "name people (qa_…_multi.json.gz of some categories)"
    )
    return DataError(str(path), [Problem("", fact, expected, remedy)])
