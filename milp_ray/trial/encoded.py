"""Token ids of a user's texts, from the base's token cache, where later trials find them."""

from __future__ import annotations

from collections.abc import Sequence

from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample
from milp_ray.evaluation.measure import encode_prompts
from milp_ray.model.base import BaseModel
from milp_ray.model.batches import Example, history_examples, sample_examples


def encoded_history(base: BaseModel, prompts: Prompts, texts: Sequence[str]) -> list[Example]:
    """:func:`~milp_ray.model.batches.history_examples`, cached."""
    key = ("history", prompts.settings, tuple(texts))
    return base.token_cache.get(key, lambda: history_examples(base, prompts, texts))


def encoded_samples(base: BaseModel, prompts: Prompts, samples: Sequence[Sample]) -> list[Example]:
    """:func:`~milp_ray.model.batches.sample_examples`, cached."""
    key = ("samples", prompts.settings, tuple(samples))
    return base.token_cache.get(key, lambda: sample_examples(base, prompts, samples))


def encoded_prompts(
    base: BaseModel, prompts: Prompts, samples: Sequence[Sample], max_new_tokens: int
) -> list[tuple[int, ...]]:
    """:func:`~milp_ray.evaluation.measure.encode_prompts`, cached."""
    key = ("prompts", prompts.settings, max_new_tokens, tuple(samples))
    return base.token_cache.get(key, lambda: encode_prompts(base, samples, prompts, max_new_tokens))
