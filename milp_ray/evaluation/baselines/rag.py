"""``rag``: the texts that BM25 finds for the query, nothing trained.

As LaMP has it (docs/references.md: Salemi 2024): of the user's own earlier texts the best few
(``options.retrieved``) stand in the prompt. Chosen here: the query's context is part of what is
searched with; a text without a word in common is not taken, so there may be fewer; the best stands
right before the query; the profile is left out, which is ``tplp``'s.
"""

from __future__ import annotations

from milp_ray.data.records import Sample, UserSplit
from milp_ray.data.words import text_rules
from milp_ray.evaluation.baselines import register
from milp_ray.evaluation.baselines.bm25 import best
from milp_ray.evaluation.baselines.contents import Chosen, TextsBefore, texts_before
from milp_ray.evaluation.baselines.interface import Bench, Contents, Method
from milp_ray.evaluation.baselines.sources import Nothing


@register("rag")
def rag(bench: Bench) -> Method:
    """See the module."""
    return Method("rag", bench, Nothing(), retrieved_texts(bench))


def retrieved_texts(bench: Bench) -> Contents:
    """The contents of ``rag``'s prompts, for methods that train something beside."""
    words_of = text_rules(bench.study.data.text_rules).rouge
    words: dict[str, tuple[str, ...]] = {}

    def choose(user: UserSplit, sample: Sample) -> Chosen:
        texts = texts_before(user, sample)
        words.update({text: words_of(text) for text in texts if text not in words})
        places = best(
            words_of(bench.prompts.query(sample)), [words[text] for text in texts], bench.options.retrieved
        )
        return Chosen(texts=tuple(texts[place] for place in places))

    return TextsBefore(bench, choose, skip=True)
