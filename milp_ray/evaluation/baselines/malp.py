"""``malp``: a short-term and a long-term memory of texts, retrieved for the prompt.

That of docs/references.md: Zhang 2023, whose coordinator (an LLM behind an API) extracts notes from
dialogues. Its released code is the guide for what follows; nothing is trained, and these choices
are made here:

- **Notes:** each history text is a note of its own. No model summarises, so that nothing leaves the
  machine and every base is treated alike.
- **Likeness:** the cosine of TF-IDF vectors over the user's own earlier texts, in place of
  Levenshtein distance of labels (texts have none) and of a sentence encoder (all-MiniLM-L6-v2).
- **Short-term memory:** the newest 16 notes. What falls out is forgotten, unless it was promoted.
- **Promotion:** a note is accessed by every later text that is at least 0.2 like it; with its third
  access (the released threshold) it enters long-term memory, for good.
- **Retrieval:** of each memory the notes most like the query, ``options.retrieved`` at most, none
  without a word in common; the newest note is always there. The prompt holds the profile, long-term
  notes, then short-term ones, the newest last.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from milp_ray.data.records import Sample, UserSplit
from milp_ray.data.words import Words, text_rules
from milp_ray.evaluation.baselines import register
from milp_ray.evaluation.baselines.contents import Chosen, TextsBefore, profile_lines, texts_before
from milp_ray.evaluation.baselines.interface import Bench, Method
from milp_ray.evaluation.baselines.sources import Nothing

SHORT_TERM = 16  # notes
LIKE = 0.2  # cosine from which a later text counts as an access
ACCESSES = 3  # that promote a note

Vector = Mapping[str, float]


@register("malp")
def malp(bench: Bench) -> Method:
    """See the module."""
    words_of = text_rules(bench.study.data.text_rules).rouge

    def choose(user: UserSplit, sample: Sample) -> Chosen:
        texts = texts_before(user, sample)
        query = words_of(bench.prompts.query(sample))
        memory = Memories([words_of(text) for text in texts])
        long, short = memory.retrieve(query, bench.options.retrieved)
        # The most important first: what is newest, then what is found, short-term before long-term.
        return Chosen(profile_lines(user), tuple(texts[place] for place in (*short, *long)))

    return Method("malp", bench, Nothing(), TextsBefore(bench, choose, skip=True))


class Memories:
    """Both memories after some texts, oldest first; a note is the place of its text.

    Attributes:
        short_term: notes, oldest first.
        long_term: promoted notes, in the order of promotion.
    """

    def __init__(self, texts: Sequence[Words]) -> None:
        in_texts = Counter(word for text in texts for word in set(text))
        self._idf = {word: math.log((1 + len(texts)) / (1 + n)) + 1 for word, n in in_texts.items()}
        self._vectors = [self._vector(text) for text in texts]
        self.short_term: list[int] = []
        self.long_term: list[int] = []
        accesses: Counter[int] = Counter()
        for place, vector in enumerate(self._vectors):
            for note in self.short_term:
                if cosine(self._vectors[note], vector) >= LIKE:
                    accesses[note] += 1
                    if accesses[note] == ACCESSES:
                        self.long_term.append(note)
            self.short_term = [*self.short_term, place][-SHORT_TERM:]

    def retrieve(self, query: Words, count: int) -> tuple[list[int], list[int]]:
        """Notes of the long-term and of the short-term memory for a query.

        Each list begins with what should be nearest to the query in the prompt; no note is in both.
        """
        vector = self._vector(query)
        newest = self.short_term[-1:]
        found = [note for note in self._best(vector, self.short_term, count) if note not in newest]
        short = sorted([*newest, *found[: max(0, count - len(newest))]], reverse=True)
        others = [note for note in self.long_term if note not in short]
        return self._best(vector, others, count), short

    def _best(self, query: Vector, notes: Sequence[int], count: int) -> list[int]:
        like = {note: cosine(self._vectors[note], query) for note in notes}
        return sorted((note for note in notes if like[note] > 0), key=lambda note: (-like[note], -note))[
            :count
        ]

    def _vector(self, words: Words) -> Vector:
        weights = {word: n * self._idf.get(word, 0.0) for word, n in Counter(words).items()}
        length = math.sqrt(math.fsum(weight**2 for weight in weights.values()))
        return {word: weight / length for word, weight in weights.items()} if length else {}


def cosine(a: Vector, b: Vector) -> float:
    """Of two vectors of length 1, or without any word."""
    few, many = (a, b) if len(a) < len(b) else (b, a)
    return math.fsum(weight * many[word] for word, weight in few.items() if word in many)
