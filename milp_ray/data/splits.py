"""Splits of users into train, validation and test, in both regimes, without leaks.

Per user (:func:`split_users`): each user's samples in time order are cut 70/10/20, and stage 1 sees
only the history before the first validation sample. By user (:func:`split_population`): the users
are divided, train users give samples to a shared stage 2, held-out users give a history to stage 1
and samples to measure on.

Users come out in the order of their aliases, which are keyed: neither the file's order nor the ids
show in anything that follows from it. In the by-user regime the parts follow from the aliases, too.

What repeats is resolved on the training side, so that what is measured stays whole, and it is
counted: a history text that holds the answer of a later held-out sample is removed; a train (or
validation) sample that repeats a held-out (or test) one, query and answer, or holds its answer is
dropped. :func:`check_no_leak` and :func:`check_population` then raise on anything left. Reading
files is *not* covered (see readers/), nor paraphrases of answers.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from milp_ray.config.models import DataSettings
from milp_ray.data import timeline
from milp_ray.data.leaks import Answers, check_no_leak, check_parts, repeated
from milp_ray.data.records import Sample, UserRecord, UserSplit
from milp_ray.data.statistics import samples_needed
from milp_ray.data.words import NEWEST
from milp_ray.errors import DataError, Problem
from milp_ray.ids import alias_of, is_alias

__all__ = [
    "PopulationSplit",
    "SplitResult",
    "check_no_leak",
    "check_population",
    "drawn_order",
    "split_population",
    "split_user",
    "split_users",
]

NO_HISTORY_LEFT = "no history before the first held-out sample"
NO_HISTORY = "no history before any sample"
PART_EMPTY = "no sample left in one of the three parts"
ALL_REPEATED = (
    "every train or validation sample repeats a later one (query and answer, or its answer in a text)"
)

TEXTS_DROPPED = "history texts that hold a later answer"
SAMPLES_DROPPED = "samples that repeat a later one"
SAMPLES_TOO_EARLY = "held-out samples before any history"
OTHERS_ANSWERS = "samples that hold a held-out user's answer"


@dataclass(frozen=True, slots=True)
class SplitResult:
    """Users ready for a study.

    Attributes:
        users: in the order of their aliases.
        skipped: reason -> how many users were left out for it.
        dropped: reason -> how many history texts or samples of the used users were left out for it.
    """

    users: tuple[UserSplit, ...]
    skipped: Mapping[str, int]
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PopulationSplit:
    """Users divided into three parts, in the order of aliases; counts as SplitResult's."""

    train: tuple[UserSplit, ...]
    validation: tuple[UserSplit, ...]
    test: tuple[UserSplit, ...]
    skipped: Mapping[str, int]
    dropped: Mapping[str, int] = field(default_factory=dict)


def split_user(record: UserRecord, alias: str, settings: DataSettings) -> UserSplit:
    """Cut one user's samples and history (per-user regime).

    Raises:
        DataError: the user cannot be used; the problem's fact is the reason that split_users
            counts.
    """
    try:
        return _split(record, alias, settings, Counter())
    except _Unusable as unusable:
        raise DataError(alias, [Problem("", unusable.reason, remedy="leave the user out")]) from None


def split_users(users: Sequence[UserRecord], key: bytes, settings: DataSettings) -> SplitResult:
    """Cut every user that ``settings.users`` names, or the first so many usable ones.

    Raises:
        DataError: a named user is not there, two users have one alias, or no user can be used.
    """
    result = split_usable(users, key, settings)
    if not result.users:
        raise _too_few(settings, "no user can be used", "at least one", result.skipped)
    return result


def split_usable(users: Sequence[UserRecord], key: bytes, settings: DataSettings) -> SplitResult:
    """As :func:`split_users`, but that nobody is left is no error."""
    skipped: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    out: list[UserSplit] = []
    for record, alias in _selected(users, key, settings):
        if len(out) == settings.users:
            break
        try:
            out.append(_split(record, alias, settings, dropped))
        except _Unusable as unusable:
            skipped[unusable.reason] += 1
    out.sort(key=lambda user: user.alias)
    return SplitResult(tuple(out), dict(skipped), dict(dropped))


def split_population(
    users: Sequence[UserRecord],
    key: bytes,
    settings: DataSettings,
    seed: int,
    parts: Mapping[str, str] | None = None,
) -> PopulationSplit:
    """Divide users by ``settings.split`` (by-user regime).

    Who goes where depends on the users' aliases and ``seed`` only: not on the file's order, and not
    on ids, since who knows those could tell the parts' users from each other. A user needs a sample
    with history before it; a held-out user's samples before that are dropped. A train user's cuts
    are the end of the history: nothing of it is measured.

    Args:
        users: as read.
        key: of the aliases.
        settings: whose ``split`` says how large each part is.
        seed: of the study.
        parts: alias -> train, validation or test, of users that were divided before: they stay
            where they were, and nobody else is used. None: they are divided now.

    Raises:
        DataError: as split_users, or fewer than 3 users can be used, or none of one part.
    """
    skipped: Counter[str] = Counter()
    usable: list[tuple[UserRecord, str]] = []
    for record, alias in _selected(users, key, settings):
        if len(usable) == settings.users:
            break
        if parts is not None and alias not in parts:
            continue
        if any(sample.n_hist for sample in _newest_samples(record, settings)):
            usable.append((record, alias))
        else:
            skipped[NO_HISTORY] += 1
    if len(usable) < 3:
        raise _too_few(settings, f"{len(usable)} users can be used", "at least 3, one in each part", skipped)
    usable.sort(key=lambda user: user[1])
    if parts is not None:
        return _population(usable, parts, settings, skipped)
    n_train, n_validation, _ = timeline.shares(len(usable), settings.split)
    part_of = {
        alias: "train" if i < n_train else "validation" if i < n_train + n_validation else "test"
        for i, alias in enumerate(drawn_order([alias for _, alias in usable], seed))
    }
    return _population(usable, part_of, settings, skipped)


def drawn_order(aliases: Iterable[str], seed: int) -> list[str]:
    """Users in an order that their aliases and ``seed`` alone decide: of two, always the same."""
    salt = hashlib.sha256(str(seed).encode()).digest()
    return sorted(
        aliases, key=lambda alias: hashlib.blake2b(alias.encode(), key=salt, digest_size=16).digest()
    )


def check_population(population: PopulationSplit, rules: int = NEWEST) -> None:
    """Raise LeakError unless parts share no user and training sees no held-out answer.

    ``rules``: of words, see :func:`milp_ray.data.words.text_rules`.
    """
    check_parts(population.train, population.validation, population.test, rules)


class _Unusable(Exception):  # noqa: N818  (an outcome that is counted)
    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def _selected(
    users: Sequence[UserRecord], key: bytes, settings: DataSettings
) -> Iterator[tuple[UserRecord, str]]:
    aliases = [alias_of(user.user_id, key) for user in users]
    if len(set(aliases)) != len(aliases):
        fact = f"{len(aliases) - len(set(aliases))} users have the alias of another user"
        remedy = "make the ids unique; if they are, start again in a new run folder, which has a new key"
        raise DataError(settings.path, [Problem("", fact, "one alias for each user", remedy)])
    if not isinstance(settings.users, tuple):
        return zip(users, aliases, strict=True)
    by_id = {user.user_id: i for i, user in enumerate(users)}
    by_alias = {alias: i for i, alias in enumerate(aliases)}
    problems: list[Problem] = []
    wanted: dict[int, int] = {}
    for place, name in enumerate(settings.users):
        index = by_id.get(name, by_alias.get(name) if is_alias(name) else None)
        if index is None:
            expected = "the id or alias of a user with history and samples"
            problems.append(Problem(f"data.users[{place}]", "no such user in the file", expected))
        elif index in wanted:
            fact = f"is the same user as data.users[{wanted[index]}]"
            problems.append(Problem(f"data.users[{place}]", fact, "each user once"))
        else:
            wanted[index] = place
    if problems:
        raise DataError(settings.path, problems)
    return ((users[index], aliases[index]) for index in sorted(wanted))


def _split(record: UserRecord, alias: str, settings: DataSettings, dropped: Counter[str]) -> UserSplit:
    if len(record.samples) < samples_needed(settings):
        raise _Unusable(f"fewer than {samples_needed(settings)} samples")
    samples = _newest_samples(record, settings)
    if len(samples) < 3:
        raise _Unusable(PART_EMPTY)
    first, second = timeline.cuts(samples, record.history, settings.split)
    test = samples[second:]
    validation = _without_repeats(samples[first:second], test, settings)
    train = _without_repeats(samples[:first], validation + test, settings)
    if not (train and validation):
        raise _Unusable(ALL_REPEATED if 0 < first < second else PART_EMPTY)
    split, texts_dropped = _cut_history(record, alias, (train, validation, test), settings)
    if split.search_cut == 0:
        raise _Unusable(NO_HISTORY_LEFT)
    dropped.update(_counted(TEXTS_DROPPED, texts_dropped))
    dropped.update(_counted(SAMPLES_DROPPED, len(samples) - len(train) - len(validation) - len(test)))
    check_no_leak(split, settings.text_rules)
    return split


def _population(
    usable: Sequence[tuple[UserRecord, str]],
    part_of: Mapping[str, str],
    settings: DataSettings,
    skipped: Counter[str],
) -> PopulationSplit:
    dropped: Counter[str] = Counter()
    parts: dict[str, list[UserSplit]] = {"train": [], "validation": [], "test": []}
    answers = Answers((), settings.text_rules)
    # Test first, then what must not hold its answers.
    for part in ("test", "validation", "train"):
        for record, alias in usable:
            if part_of[alias] != part:
                continue
            try:
                parts[part].append(_whole_user(record, alias, part, settings, answers, dropped))
            except _Unusable as unusable:
                skipped[unusable.reason] += 1
        held_out = [sample for user in parts["test"] + parts["validation"] for sample in _samples(user)]
        answers = Answers(held_out, settings.text_rules)
        if not parts[part]:
            raise _too_few(settings, f"no {part} user can be used", "at least one", skipped)
    population = PopulationSplit(
        tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["test"]), dict(skipped), dict(dropped)
    )
    check_population(population, settings.text_rules)
    return population


def _whole_user(
    record: UserRecord,
    alias: str,
    part: str,
    settings: DataSettings,
    answers: Answers,
    dropped: Counter[str],
) -> UserSplit:
    """One user whose samples are all in one part and must not hold any of ``answers``."""
    samples = _newest_samples(record, settings)
    kept = [sample for sample in samples if not answers.in_sample(sample)]
    dropped.update(_counted(OTHERS_ANSWERS, len(samples) - len(kept)))
    if part != "train":
        late = [sample for sample in kept if sample.n_hist]
        dropped.update(_counted(SAMPLES_TOO_EARLY, len(kept) - len(late)))
        kept = late
    if not kept:
        raise _Unusable(PART_EMPTY)
    chosen = tuple(kept if part == name else [] for name in ("train", "validation", "test"))
    split, texts_dropped = _cut_history(record, alias, chosen, settings)
    if split.search_cut == 0:
        raise _Unusable(NO_HISTORY_LEFT)
    dropped.update(_counted(TEXTS_DROPPED, texts_dropped))
    return split


def _cut_history(
    record: UserRecord, alias: str, parts: Sequence[Sequence[Sample]], settings: DataSettings
) -> tuple[UserSplit, int]:
    """The split, and how many history texts were removed because they hold a later answer."""
    held_out = [*parts[1], *parts[2]]
    max_history = settings.max_history
    answers = Answers(held_out, settings.text_rules)
    removed = answers.before_due(record.history)
    gone = set(removed)
    history = [text for i, text in enumerate(record.history) if i not in gone]

    def moved(n_hist: int | None) -> int:
        place = min(n_hist or 0, len(record.history))
        return place - bisect_left(removed, place)

    end = len(history)
    search_cut = min((moved(sample.n_hist) for sample in held_out), default=end)
    final_cut = min((moved(sample.n_hist) for sample in parts[2]), default=search_cut)
    start = 0 if max_history is None else max(0, search_cut - max_history)
    final_start = 0 if max_history is None else max(0, final_cut - start - max_history)
    train, validation, test = (
        tuple(replace(sample, n_hist=max(0, moved(sample.n_hist) - start)) for sample in part)
        for part in parts
    )
    split = UserSplit(
        alias=alias,
        history=tuple(history[start:]),
        train=train,
        validation=validation,
        test=test,
        search_cut=search_cut - start,
        final_cut=final_cut - start,
        final_start=final_start,
        profile=tuple(item for item in (record.profile or {}).items() if not answers.inside(item[1])),
    )
    return split, len(removed)


def _newest_samples(record: UserRecord, settings: DataSettings) -> list[Sample]:
    samples = timeline.in_time_order(record)
    return samples if settings.max_samples is None else samples[-settings.max_samples :]


def _without_repeats(
    earlier: Sequence[Sample], later: Sequence[Sample], settings: DataSettings
) -> list[Sample]:
    gone = set(repeated(earlier, later, settings.text_rules))
    return [sample for i, sample in enumerate(earlier) if i not in gone]


def _samples(user: UserSplit) -> tuple[Sample, ...]:
    return user.train + user.validation + user.test


def _counted(reason: str, count: int) -> dict[str, int]:
    return {reason: count} if count else {}


def _too_few(settings: DataSettings, fact: str, expected: str, skipped: Mapping[str, int]) -> DataError:
    reasons = "; ".join(f"{count} skipped: {reason}" for reason, count in sorted(skipped.items()))
    remedy = (
        "lower data.min_samples, or take users with more samples (data.users, data.path)"
        if settings.split.regime == "per_user"
        else "take more users (data.users, data.path)"
    )
    if settings.split.regime == "per_user" and f"fewer than {samples_needed(settings)} samples" in skipped:
        remedy = f"set data.split.regime: by_user, for data with a few samples a user; or {remedy}"
    if ALL_REPEATED in skipped:
        remedy = f"write samples down once; or {remedy}"
    return DataError(
        settings.path, [Problem("", f"{fact} ({reasons})" if reasons else fact, expected, remedy)]
    )
