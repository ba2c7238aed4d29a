"""Loss of given responses, and greedy generation of new ones, with whatever memory sits on the base.

Results do not depend on the batch size (up to floating-point rounding). Where several ranks share the base,
all call these functions alike; each measures its share of every batch, and all get the whole result. Text
metrics are not covered here: :mod:`milp_ray.evaluation.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample
from milp_ray.evaluation.decoding import decoder
from milp_ray.model.base import BaseModel
from milp_ray.model.batches import Example, by_length, collate, sample_examples, token_losses


@dataclass(frozen=True, slots=True)
class LossSum:
    """Negative log-likelihood of response tokens, in nats: their sum and their number."""

    nats: float = 0.0
    tokens: int = 0

    @property
    def mean(self) -> float:
        """Nats per token; NaN when there was no token."""
        return self.nats / self.tokens if self.tokens else float("nan")

    def __add__(self, other: LossSum) -> LossSum:
        return LossSum(self.nats + other.nats, self.tokens + other.tokens)


def response_loss(
    base: BaseModel, samples: Sequence[Sample], prompts: Prompts, batch_size: int = 16
) -> LossSum:
    """The loss of the samples' responses, end token included, given everything before them."""
    examples = sample_examples(base, prompts, samples)
    return sum(losses(base, examples, batch_size), LossSum())


def losses(base: BaseModel, examples: Sequence[Example], batch_size: int) -> Iterator[LossSum]:
    """:func:`response_loss` of encoded samples, batch by batch; add the results up."""
    for indices in by_length([len(example.ids) for example in examples], batch_size):
        yield _batch_loss(base, [examples[index] for index in indices])


def generate(
    base: BaseModel,
    samples: Sequence[Sample],
    prompts: Prompts,
    max_new_tokens: int,
    batch_size: int = 16,
) -> list[str]:
    """Greedy responses to the samples' queries, without thinking and surrounding white space, in the samples'
    order."""
    encoded = encode_prompts(base, samples, prompts, max_new_tokens)
    texts = [""] * len(samples)
    for responses in generations(base, encoded, prompts, max_new_tokens, batch_size):
        for index, text in responses.items():
            texts[index] = text
    return texts


def encode_prompts(
    base: BaseModel, samples: Sequence[Sample], prompts: Prompts, max_new_tokens: int
) -> list[tuple[int, ...]]:
    """Token ids before each response. Where the response would not fit the model's context any more, the
    middle of the prompt goes: its first token (the start of text, where there is one) and its end stay."""
    room = base.architecture.context - max_new_tokens
    encoded = [tuple(prompts.encode_prompt(base.tokenizer, sample)) for sample in samples]
    return [ids if len(ids) <= room else (ids[0], *ids[len(ids) - room + 1 :]) for ids in encoded]


def generations(
    base: BaseModel,
    encoded: Sequence[Sequence[int]],
    prompts: Prompts,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[dict[int, str]]:
    """:func:`generate` for encoded prompts, batch by batch: index of the prompt to response. While a batch is
    under way nothing (an empty one) comes every few tokens, on all ranks alike."""
    order = by_length([len(ids) for ids in encoded], batch_size)
    batches = [[encoded[index] for index in indices] for indices in order]
    decode = decoder(base, batches, max_new_tokens, prompts.stop_ids(base.tokenizer))
    for indices, batch in zip(order, batches, strict=True):
        for found in decode(batch):
            yield {
                index: prompts.response_text(base.tokenizer, ids)
                for index, ids in (zip(indices, found, strict=True) if found is not None else ())
            }


def _batch_loss(base: BaseModel, examples: Sequence[Example]) -> LossSum:
    group = base.parallel.group
    mine = group.share(examples)
    nats = 0.0
    # A divided base is called by all ranks or by none: one without a text of its own repeats another's.
    if mine or base.parallel.sharded:
        with base.measuring():
            found = token_losses(base, collate(mine or examples[:1], base)).double().sum().item()
        nats = found if mine else 0.0
    return LossSum(group.total([nats])[0], sum(example.num_labels for example in examples))
