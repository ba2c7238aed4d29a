"""Questions with a profile, as LaMP and LongLaMP have them, made into users.

A profile is a person's earlier works: papers, headlines, reviews, tweets. Each item gives a history
text, and an exchange of the kind that the task asks for: its title from its text, its score from
its review. A task says how, in words of our own.

A question's sample knows the items of its own profile. Exchanges of the profile are samples, too,
in the per-user regime, where a user needs several; by user they are left out, since held-out users
are measured on what their profile does not hold.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from milp_ray.data.readers.rows import cell_text
from milp_ray.data.readers.strict import Fault, kind_of
from milp_ray.data.readers.timelines import NO_HISTORY, NO_SAMPLES
from milp_ray.data.records import Sample, UserRecord

NO_TEXT = "items of profiles without a text"

Item = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ProfileTask:
    """How a benchmark's profile items are read.

    Attributes:
        name: of the task, for messages.
        needs: keys of an item.
        text: an item's text for the history.
        pair: an item's query and response; None where it gives none.
        labels: all answers to a question; empty where they are free.
        labelled_pairs: whether responses of pairs are labels as those of questions are.
    """

    name: str
    needs: tuple[str, ...]
    text: Callable[[Item], str]
    pair: Callable[[Item], tuple[str, str] | None]
    labels: tuple[str, ...] = ()
    labelled_pairs: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """An item of a profile: its id, or its content where it has none, its date, its texts."""

    key: str
    date: str
    texts: Item


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answer: what is asked of one user who has a profile."""

    source_id: str
    user_id: str
    query: str
    response: str
    profile: tuple[Work, ...]


def profile_of(value: object, task: ProfileTask, dropped: Counter[str]) -> tuple[Work, ...]:
    """A profile's items; those that lack a text are counted.

    Raises:
        Fault: it is no profile of the task.
    """
    if not isinstance(value, list):
        raise Fault(f"profile is {kind_of(value)}", "a list of objects")
    works: list[Work] = []
    for i, item in enumerate(value):
        place = f"profile[{i}]"
        if not isinstance(item, dict):
            raise Fault(f"{place} is {kind_of(item)}", "an object")
        if missing := [key for key in task.needs if key not in item]:
            expected = f"an item of {task.name}: " + ", ".join(task.needs)
            raise Fault(f"{place} has no {missing[0]}", expected, "is it another task's file?")
        texts = {key: cell_text(item[key], f"{place}.{key}") for key in task.needs}
        found = {key: text for key, text in texts.items() if text is not None}
        if len(found) < len(task.needs):
            dropped[NO_TEXT] += 1
            continue
        key = cell_text(item.get("id"), f"{place}.id", single_line=True) or "\n".join(found.values())
        works.append(Work(key, cell_text(item.get("date"), f"{place}.date", single_line=True) or "", found))
    return tuple(works)


def users_of(
    questions: Sequence[Question], task: ProfileTask, *, pairs: bool
) -> tuple[tuple[UserRecord, ...], dict[str, int]]:
    """The users of questions, in their order, and how many are left out, by reason.

    Args:
        questions: of a file.
        task: theirs.
        pairs: whether exchanges of the profile are samples.
    """
    by_user: defaultdict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_user[question.user_id].append(question)
    users: list[UserRecord] = []
    skipped: Counter[str] = Counter()
    for user_id, asked in by_user.items():
        works = _merged(asked)
        history = tuple(task.text(work.texts) for work in works)
        samples = [*(_pairs(works, task) if pairs else ()), *(_sample(one, works, task) for one in asked)]
        if not history or not samples:
            skipped[NO_SAMPLES if history else NO_HISTORY] += 1
        else:
            samples.sort(key=lambda sample: sample.n_hist or 0)
            users.append(UserRecord(user_id, history, tuple(samples)))
    return tuple(users), dict(skipped)


def _merged(questions: Sequence[Question]) -> list[Work]:
    """The items of all profiles, each once; by date where all have one, else as they come."""
    works = {work.key: work for question in questions for work in question.profile}
    found = list(works.values())
    return sorted(found, key=lambda work: work.date) if all(work.date for work in found) else found


def _sample(question: Question, works: Sequence[Work], task: ProfileTask) -> Sample:
    """A question after the items of its own profile: from the first one on that is not its own."""
    own = {work.key for work in question.profile}
    known = next((i for i, work in enumerate(works) if work.key not in own), len(works))
    label = question.response if task.labels else None
    choices = task.labels if question.response in task.labels else ()
    return Sample(
        question.query,
        question.response,
        n_hist=known,
        label=label,
        choices=choices,
        source_id=question.source_id,
    )


def _pairs(works: Sequence[Work], task: ProfileTask) -> list[Sample]:
    samples: list[Sample] = []
    for i, work in enumerate(works):
        if (pair := task.pair(work.texts)) is None:
            continue
        query, response = pair
        label = response if task.labelled_pairs else None
        choices = task.labels if label in task.labels else ()
        samples.append(Sample(query, response, n_hist=i, label=label, choices=choices))
    return samples
