"""Generated people for the demo: facts, tastes and phrases recur in all that one writes.

Each persona replies to what others ask, in its own voice, and remarks on its days in between; what
it says late can be guessed from what it said early, never copied. Nothing here is anybody's real
text. This module does *not* split, tokenize or read (:mod:`milp_ray.data.splits`,
:mod:`milp_ray.data.prompts`, :mod:`milp_ray.data.readers`); the words are in
:mod:`milp_ray.data.persona_words`.
"""

from __future__ import annotations

import json
import math
import random
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from milp_ray.data.persona_words import ADDRESSES, FACTS, HOW_MANY, TASTES, TOPICS
from milp_ray.data.records import Sample, UserRecord
from milp_ray.storage import atomic_write

#: Of these three facts no two personas of one seed share all values.
IDENTITY = ("city", "job", "petname")
DISTINCT = math.prod(len(FACTS[fact]) for fact in IDENTITY)

PHRASES = ("opening", "closing")
_CLOSING_SHARE = 0.75
_TRIES = 400
_REMARKS = tuple(pattern for topic in TOPICS.values() for pattern in topic.remarks)


@dataclass(frozen=True, slots=True)
class Persona:
    """Who a generated person is: ``values[slot]`` holds a fact (one value) or tastes (several)."""

    number: int
    values: Mapping[str, tuple[str, ...]]

    @property
    def profile(self) -> dict[str, str]:
        """The facts, one value each."""
        return {fact: self.values[fact][0] for fact in FACTS}


def make_persona(number: int, seed: int) -> Persona:
    """Persona ``number`` of a seed's sequence; the first DISTINCT (29,250) all differ.

    Raises:
        ValueError: ``number`` is negative or past the last distinct persona.
    """
    if not 0 <= number < DISTINCT:
        raise ValueError(f"persona {number} of {DISTINCT}")
    rng = random.Random(f"persona {seed} {number}")
    values: dict[str, tuple[str, ...]] = {fact: (rng.choice(words),) for fact, words in FACTS.items()}
    values |= {taste: tuple(rng.sample(words, HOW_MANY[taste])) for taste, words in TASTES.items()}
    rest = _shuffled(number, seed)
    for fact in IDENTITY:  # the digits of a number in mixed radix: other number, other digits
        rest, digit = divmod(rest, len(FACTS[fact]))
        values[fact] = (FACTS[fact][digit],)
    return Persona(number, values)


def generate_personas(
    count: int, seed: int, *, first: int = 0, rounds: int = 5, remarks: int = 48
) -> list[UserRecord]:
    """``count`` users with their histories and samples, in time order.

    Args:
        count: how many users.
        seed: of everything; equal arguments give equal users.
        first: number of the first persona, so that one seed serves disjoint groups of people.
        rounds: how often each topic is asked about; a user has ``rounds * 12`` samples, and any
            ``1 / rounds`` of them in time order holds every topic once.
        remarks: texts of the user's own accord; the history holds them and the responses.

    Returns:
        Users whose ``samples[i].n_hist`` texts of ``history`` come before sample i;
        ``history[n_hist]`` is its response. Within a user no query and no response occurs twice.

    Raises:
        ValueError: more personas than there are, or more rounds or remarks than the words allow.
    """
    return [_speak(make_persona(first + i, seed), seed, rounds, remarks) for i in range(count)]


def write_jsonl(users: Iterable[UserRecord], path: Path) -> None:
    """Write users as JSON lines, one user a line, atomically.

    Raises:
        StorageError: the file cannot be written.
    """
    lines = [json.dumps(_plain(user), ensure_ascii=False, allow_nan=False) for user in users]
    atomic_write(path, lambda draft: draft.write_text("".join(f"{line}\n" for line in lines), "utf-8"))


def _shuffled(number: int, seed: int) -> int:
    """A bijection of range(DISTINCT), so that neighbours differ in all of IDENTITY."""
    rng = random.Random(f"order {seed}")
    step = rng.randrange(DISTINCT // 3, DISTINCT)
    while math.gcd(step, DISTINCT) != 1:
        step += 1
    return (number * step + rng.randrange(DISTINCT)) % DISTINCT


def _speak(persona: Persona, seed: int, rounds: int, remarks: int) -> UserRecord:
    rng = random.Random(f"voice {seed} {persona.number}")
    voice = _Voice(persona, rng)
    history = voice.introduction()
    samples: list[Sample] = []
    topics = [topic for _ in range(rounds) for topic in rng.sample(list(TOPICS), len(TOPICS))]
    gaps = sorted(rng.randrange(len(topics)) for _ in range(remarks - len(history)))
    for index, topic in enumerate(topics):
        for _ in range(gaps.count(index)):
            history.append(voice.remark())
        query, response = voice.exchange(topic)
        samples.append(Sample(query, response, n_hist=len(history)))
        history.append(response)
    user_id = f"persona-{seed}-{persona.number:05d}"
    return UserRecord(user_id, tuple(history), tuple(samples), persona.profile)


class _Voice:
    """One persona speaking: it fills patterns, in its own phrases, never the same twice."""

    def __init__(self, persona: Persona, rng: random.Random) -> None:
        self.values = persona.values
        self.rng = rng
        self.asked: set[str] = set()
        self.cores: set[str] = set()
        self.said: list[str] = []

    def introduction(self) -> list[str]:
        """Remarks that between them hold every fact and taste of the persona, in mixed order."""
        missing = {slot: list(values) for slot, values in self.values.items()}
        texts: list[str] = []
        while any(missing.values()):
            needed = [slot for slot, values in missing.items() if values and slot not in PHRASES]
            patterns = [p for p in _REMARKS if not needed or needed[0] in _slots(p)]
            pattern = self.rng.choice(patterns)
            slots = [*_slots(pattern), *PHRASES]
            chosen = {slot: missing[slot].pop() for slot in slots if missing[slot]}
            texts.append(self._dress(self._fill(pattern, chosen), chosen))
        self.rng.shuffle(texts)
        self.said += texts
        return texts

    def remark(self) -> str:
        """Something new about anything; half of the time in the persona's phrases."""
        return self._new(_REMARKS, dressed=0.5)

    def exchange(self, topic: str) -> tuple[str, str]:
        """A question on ``topic`` that was not put like this before, and a new reply."""
        for _ in range(_TRIES):
            query = self.rng.choice(ADDRESSES) + self.rng.choice(TOPICS[topic].questions)
            query = query[0].upper() + query[1:]
            if query not in self.asked:
                self.asked.add(query)
                return query, self._new(TOPICS[topic].replies, dressed=1.0)
        raise ValueError(f"too many rounds: the questions on {topic!r} are used up")

    def _new(self, patterns: Sequence[str], dressed: float) -> str:
        text = core = ""
        for attempt in range(_TRIES):
            core = self._fill(self.rng.choice(patterns), {})
            text = self._dress(core, {}) if self.rng.random() < dressed else _sentence(core)
            # Another wording is better than the same one in other phrases, which is better than
            # nothing new.
            if core in self.cores and attempt < _TRIES // 2:
                continue
            if not any(text in old or old in text for old in self.said):
                self.cores.add(core)
                self.said.append(text)
                return text
        raise ValueError("too many rounds or remarks: this persona has nothing new to say")

    def _fill(self, pattern: str, chosen: Mapping[str, str]) -> str:
        return pattern.format(**{slot: chosen.get(slot) or self._pick(slot) for slot in _slots(pattern)})

    def _dress(self, core: str, chosen: Mapping[str, str]) -> str:
        text = f"{chosen.get('opening') or self._pick('opening')}, {core}"
        if "closing" in chosen or self.rng.random() < _CLOSING_SHARE:
            text += f" {chosen.get('closing') or self._pick('closing')}"
        return text

    def _pick(self, slot: str) -> str:
        """One of the persona's values, the first ones more often: people have favourites."""
        values = self.values[slot]
        return values[min(self.rng.randrange(len(values)), self.rng.randrange(len(values)))]


def _slots(pattern: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(pattern) if name]


def _sentence(core: str) -> str:
    return core[0].upper() + core[1:]


def _plain(user: UserRecord) -> dict[str, object]:
    samples = [{k: v for k, v in asdict(sample).items() if v is not None} for sample in user.samples]
    return {"user_id": user.user_id, "profile": user.profile, "history": user.history, "samples": samples}
