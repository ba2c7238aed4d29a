"""Finds answers of validation and test samples in what is trained on before them.

A response counts as evidence when it has at least 20 characters and 4 words; shorter ones ("thank
you, bye") recur by nature and prove nothing. It is *in* a text when its words
(:mod:`milp_ray.data.words`), without a leading "Name: ", follow one another there. A query that
comes again with another answer gives nothing away: the samples of many data sets all ask the same
("write as this person"). Paraphrases are *not* found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from milp_ray.data.records import Sample, UserSplit
from milp_ray.data.words import NEWEST, Words, text_rules
from milp_ray.errors import LeakError

MIN_CHARACTERS = 20
MIN_WORDS = 4

_TAG = re.compile(r"\s*[^\s:]{1,32}:\s+")


def answer_of(sample: Sample, rules: int = NEWEST) -> Words:
    """The words of a response without a leading "Name: "; () if too few to be evidence."""
    text = sample.response
    if tag := _TAG.match(text):
        text = text[tag.end() :]
    return _evidence(text, rules)


class Answers:
    """Answers of validation and test samples, searchable in other texts in time linear in the text.

    Args:
        samples: whose answers they are.
        rules: of words, see :func:`milp_ray.data.words.text_rules`.
    """

    def __init__(self, samples: Iterable[Sample], rules: int = NEWEST) -> None:
        self._words_of = text_rules(rules).leaks
        self._latest: dict[Words, int] = {}
        for sample in samples:
            if answer := answer_of(sample, rules):
                self._latest[answer] = max(self._latest.get(answer, 0), sample.n_hist or 0)
        self._by_head: dict[Words, list[Words]] = {}
        for answer in self._latest:
            self._by_head.setdefault(answer[:MIN_WORDS], []).append(answer)

    def inside(self, text: str) -> list[Words]:
        """The answers whose words follow one another in ``text``."""
        words = self._words_of(text)
        return [
            answer
            for i in range(len(words) - MIN_WORDS + 1)
            for answer in self._by_head.get(words[i : i + MIN_WORDS], ())
            if words[i : i + len(answer)] == answer
        ]

    def in_sample(self, sample: Sample) -> bool:
        """Whether any text of a sample holds one of the answers."""
        texts = (sample.query, sample.response, sample.context)
        return any(self.inside(text) for text in texts if text)

    def before_due(self, history: Sequence[str]) -> list[int]:
        """The places of history texts that hold the answer of a sample which comes after them.

        A text at ``i`` is too early when some sample with that answer has ``n_hist > i``: it is
        then part of the ``history[:n_hist]`` which that sample's Persona-F1 is counted on, or of a
        stage 1 before it.
        """
        if not self._latest:
            return []
        return [
            i
            for i, text in enumerate(history)
            if any(self._latest[answer] > i for answer in self.inside(text))
        ]


def repeated(earlier: Sequence[Sample], later: Sequence[Sample], rules: int = NEWEST) -> list[int]:
    """The places in ``earlier`` of samples that give away one of ``later``.

    That is: the same query, context and response; or a later sample's answer in any of its texts.
    By the first rules also the same query (of at least evidence length) with the same context.
    """
    answers = Answers(later, rules)
    pairs = {_pair(sample, rules) for sample in later}
    queries: set[tuple[Words, Words] | None] = set()
    if text_rules(rules).same_query:
        queries = {_query_key(sample, rules) for sample in later} - {None}
    return [
        i
        for i, sample in enumerate(earlier)
        if _pair(sample, rules) in pairs
        or (queries and _query_key(sample, rules) in queries)
        or answers.in_sample(sample)
    ]


def check_no_leak(split: UserSplit, rules: int = NEWEST) -> None:
    """Raise unless no training of this user can see an answer that it is measured on.

    Checked: both cuts against the samples' ``n_hist``; the answers of validation and test samples
    against the histories of stage 1 and ``history[:n_hist]``; the parts of the samples against each
    other.

    Raises:
        LeakError: with the user's alias and counts, never with text.
    """
    for cut, samples, name in (
        (split.search_cut, split.validation + split.test, "search_cut"),
        (split.final_cut, split.test, "final_cut"),
    ):
        early = sum(sample.n_hist is None or sample.n_hist < cut for sample in samples)
        if early:
            raise _leak(split.alias, f"{early} held-out samples come before {name}")
    places = Answers(split.validation + split.test, rules).before_due(split.history)
    if places:
        raise _leak(split.alias, f"{len(places)} history texts hold a later sample's answer")
    for earlier, later, names in (
        (split.train, split.validation + split.test, "train samples repeat validation or test samples"),
        (split.validation, split.test, "validation samples repeat test samples"),
    ):
        if found := repeated(earlier, later, rules):
            raise _leak(split.alias, f"{len(found)} {names}")


def check_parts(
    train: Sequence[UserSplit],
    validation: Sequence[UserSplit],
    test: Sequence[UserSplit],
    rules: int = NEWEST,
) -> None:
    """The same for users divided into parts: no user in two, no held-out answer in training.

    Validation samples are checked against test samples' answers, too, since the last training may
    read both.

    Raises:
        LeakError: with the alias of the first user at fault.
    """
    seen: set[str] = set()
    for user in (*train, *validation, *test):
        if user.alias in seen:
            raise _leak(user.alias, "the user is in two parts, or twice in one")
        seen.add(user.alias)
        check_no_leak(user, rules)
    for earlier, later, name in (
        (train, (*validation, *test), "train"),
        (validation, test, "validation"),
    ):
        held_out = (sample for user in later for sample in (*user.validation, *user.test))
        answers = Answers(held_out, rules)
        for user in earlier:
            found = sum(answers.in_sample(sample) for sample in (*user.train, *user.validation))
            if found:
                raise _leak(user.alias, f"{found} {name} samples hold the answer of a held-out user's sample")


def _query_key(sample: Sample, rules: int) -> tuple[Words, Words] | None:
    query = _evidence(sample.query, rules)
    return (query, text_rules(rules).leaks(sample.context or "")) if query else None


def _pair(sample: Sample, rules: int) -> tuple[str, str, str]:
    texts = (sample.query, sample.response, sample.context or "")
    query, response, context = (" ".join(text_rules(rules).folded(text).split()) for text in texts)
    return query, response, context


def _evidence(text: str, rules: int) -> Words:
    words = text_rules(rules).leaks(text)
    return words if len(words) >= MIN_WORDS and len(text.strip()) >= MIN_CHARACTERS else ()


def _leak(alias: str, fact: str) -> LeakError:
    expected = "nothing that is trained on holds an answer that is measured later"
    return LeakError(fact, where=alias, expected=expected, remedy="split the user with milp_ray.data.splits")
