"""The users of a study under their aliases, and which of them a run goes on with.

A run keeps a digest of each user's data. On a resume, users whose data is as it was go on; who is
in the data no more is left out, with a note; a user whose data has changed is refused; new users
are told and not searched. Runs of format 1 kept one digest of the whole file, and go on as they
began: with the same file only, and with users numbered by their places in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from milp_ray.config.models import DataSettings, Study
from milp_ray.core_dumps import no_core_dumps
from milp_ray.data.digests import Fingerprint, parts_of, user_digest
from milp_ray.data.readers import ReadResult, read_users
from milp_ray.data.records import UserRecord, UserSplit
from milp_ray.data.splits import PopulationSplit, SplitResult, split_population, split_usable, split_users
from milp_ray.errors import DataError, Problem
from milp_ray.ids import alias_of, is_alias, number_of

_MOST_NAMED = 20


@dataclass(frozen=True)
class Users:
    """The users of a study.

    Attributes:
        splits: by alias, in the run's order: that of the aliases.
        skipped: reason -> users left out for it.
        dropped: reason -> texts or samples of used users left out for it.
        fingerprint: of the data that the run was begun with.
        positions: alias -> place in the file; of runs of format 1 alone, which number users so.
        notes: for people, of a resumed run: who is left out from here on, who is new.
    """

    splits: Mapping[str, UserSplit]
    skipped: Mapping[str, int]
    dropped: Mapping[str, int]
    fingerprint: Fingerprint
    positions: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> Mapping[str, str]:
        """The part of each user that the run began with, where users are divided; else nothing."""
        return parts_of(self.fingerprint)

    @property
    def begun(self) -> tuple[str, ...]:
        """All users that the run began with, in its order, those included that are gone since."""
        return tuple(self.splits) if isinstance(self.fingerprint, str) else tuple(self.fingerprint)

    def number(self, alias: str) -> int:
        """A user's own number, which its seeds derive from."""
        return self.positions[alias] if self.positions else number_of(alias)


def load_users(study: Study, key: bytes, before: Fingerprint | None = None) -> Users:
    """Read and split the users, under aliases. From here on this process leaves no core dump.

    Args:
        study: resolved.
        key: of the aliases.
        before: fingerprint of the data that the run was begun with; None for a new run.

    Raises:
        DataError: the data is not readable, is other data than before, or leaves no user.
    """
    no_core_dumps()
    read = read_users(study.data)
    if isinstance(before, str):
        return _of_format_1(read, key, study.data, before)
    if before is not None:
        return _as_begun(read, key, study, before)
    records = _by_alias(read.users, key)
    if study.data.split.regime == "by_user":
        population = split_population(read.users, key, study.data, study.seed)
        parts = {
            user.alias: part for part in ("train", "validation", "test") for user in getattr(population, part)
        }
        split = _together(population)
    else:
        parts, split = {}, split_users(read.users, key, study.data)
    digests = {
        user.alias: user_digest(records[user.alias], user.alias, key, parts.get(user.alias, ""))
        for user in split.users
    }
    return _users(split, read, digests)


def _together(population: PopulationSplit) -> SplitResult:
    """All users of a divided population, in the order of their aliases."""
    everyone = (*population.train, *population.validation, *population.test)
    users = tuple(sorted(everyone, key=lambda user: user.alias))
    return SplitResult(users, population.skipped, population.dropped)


def _of_format_1(read: ReadResult, key: bytes, settings: DataSettings, before: str) -> Users:
    if read.fingerprint != before:
        fact = "the data file has changed since the run began"
        expected = "the same bytes: finished trials were measured on them"
        remedy = "restore the file, or start a new run under another study name"
        raise DataError(settings.path, [Problem("", fact, expected, remedy)])
    split = split_users(read.users, key, settings)
    place = {alias: index for index, alias in enumerate(_by_alias(read.users, key))}
    users = sorted(split.users, key=lambda user: place[user.alias])
    split = SplitResult(tuple(users), split.skipped, split.dropped)
    return _users(split, read, before, {user.alias: index for index, user in enumerate(users)})


def _as_begun(read: ReadResult, key: bytes, study: Study, before: Mapping[str, str]) -> Users:
    """The users that the run was begun with, as far as they are still there."""
    settings, parts = study.data, parts_of(before)
    records = _by_alias(read.users, key)
    named = settings.users
    if isinstance(named, tuple):  # who is taken out of the study's list is left out as well
        listed = {name if is_alias(name) else alias_of(name, key) for name in named}
        records = {alias: record for alias, record in records.items() if alias in listed}
    kept = {alias: records[alias] for alias in before if alias in records}
    _refuse_changed(kept, key, settings, before)
    everyone = settings.model_copy(update={"users": None})
    if parts and kept:
        split = _together(split_population(tuple(kept.values()), key, everyone, study.seed, parts))
    else:
        split = split_usable(tuple(kept.values()), key, everyone)
    if not split.users:
        fact = f"none of the {len(before)} users that the run was begun with is there any more"
        remedy = "restore the data, or start a new run under another study name"
        raise DataError(settings.path, [Problem("", fact, "at least one of them", remedy)])
    present = {user.alias for user in split.users}
    notes = [
        _left_out([alias for alias in before if alias not in kept], "in the data no more"),
        _left_out([alias for alias in kept if alias not in present], "not usable any more"),
    ]
    skipped = Counter(split.skipped)
    if settings.users is None or (isinstance(settings.users, int) and len(before) < settings.users):
        others = [records[alias] for alias in records if alias not in before]
        if parts:
            notes.append(_outside(len(others)))
        else:
            usable = split_usable(others, key, everyone)
            skipped += Counter(usable.skipped)
            notes.append(_new(len(usable.users)))
    split = SplitResult(split.users, skipped, split.dropped)
    return _users(split, read, dict(before), notes=[note for note in notes if note])


def _refuse_changed(
    kept: Mapping[str, UserRecord], key: bytes, settings: DataSettings, before: Mapping[str, str]
) -> None:
    parts = parts_of(before)
    changed = [a for a, record in kept.items() if user_digest(record, a, key, parts.get(a, "")) != before[a]]
    if not changed:
        return
    expected = "the same texts: finished trials were measured on them"
    remedy = "restore them, or take the user out, which leaves the others, or start a new run"
    problems = [
        Problem(alias, "the user's data has changed since the run began", expected, remedy)
        for alias in changed[:_MOST_NAMED]
    ]
    if more := len(changed) - len(problems):
        problems.append(Problem("", f"and {more} more users, {len(changed)} in all"))
    raise DataError(settings.path, problems)


def _left_out(aliases: Sequence[str], why: str) -> str:
    if not aliases:
        return ""
    names = ", ".join(aliases[:_MOST_NAMED]) + (", …" if len(aliases) > _MOST_NAMED else "")
    return (
        f"{_count(len(aliases))} of the run {'is' if len(aliases) == 1 else 'are'} {why} ({names}), and left "
        "out from here on; what was finished stays in the run folder until you delete it"
    )


def _new(count: int) -> str:
    if not count:
        return ""
    return f"{_count(count)} came into the data after the run began: not searched; a new run takes them in"


def _outside(count: int) -> str:
    """Of a divided population, where new users look like those who could not be used before."""
    if not count:
        return ""
    return (
        f"{_count(count)} of the data are not of the run: they came after it began, or could not be used then"
    )


def _count(users: int) -> str:
    return f"{users} user{'s' if users > 1 else ''}"


def _by_alias(records: Iterable[UserRecord], key: bytes) -> dict[str, UserRecord]:
    """Records by alias, in the file's order."""
    return {alias_of(record.user_id, key): record for record in records}


def _users(
    split: SplitResult,
    read: ReadResult,
    fingerprint: Fingerprint,
    positions: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
) -> Users:
    return Users(
        splits={user.alias: user for user in split.users},
        skipped=dict(sorted((Counter(read.skipped) + Counter(split.skipped)).items())),
        dropped=dict(sorted((Counter(read.dropped) + Counter(split.dropped)).items())),
        fingerprint=fingerprint,
        positions=positions or {},
        notes=tuple(notes),
    )
