"""Loss of given responses, and greedy generation of new ones, with whatever adapter is on the base.

Results do not depend on the batch size, up to floating-point rounding. Where several ranks share
the base, all of them make the same calls; each measures its share of every batch, and all get the
whole result. Text metrics are :mod:`milp_ray.evaluation.metrics`'s.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample
from milp_ray.evaluation.decoding import decoder
from milp_ray.model.base import BaseModel
from milp_ray.model.batches import Example, by_length, collate, sample_examples, token_losses
from milp_ray.training.loop import Progress

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class LossSum:
    """Negative log-likelihood of response tokens: its sum in nats, and their number."""

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
    return run_through(measure_loss(base, sample_examples(base, prompts, samples), batch_size))


def measure_loss(
    base: BaseModel, examples: Sequence[Example], batch_size: int
) -> Generator[Progress, None, LossSum]:
    """:func:`response_loss` of encoded samples, with a yield after every batch."""
    batches = math.ceil(len(examples) / batch_size)
    total = LossSum()
    for step, indices in enumerate(by_length([len(example.ids) for example in examples], batch_size), 1):
        total += _batch_loss(base, [examples[index] for index in indices])
        yield Progress("loss", step, batches)
    return total


def generate(
    base: BaseModel,
    samples: Sequence[Sample],
    prompts: Prompts,
    max_new_tokens: int,
    batch_size: int = 16,
) -> list[str]:
    """Greedy responses to the samples' queries, by sample, without thinking and outer space."""
    encoded = encode_prompts(base, samples, prompts, max_new_tokens)
    return run_through(measure_responses(base, encoded, prompts, max_new_tokens, batch_size))


def encode_prompts(
    base: BaseModel, samples: Sequence[Sample], prompts: Prompts, max_new_tokens: int
) -> list[tuple[int, ...]]:
    """Token ids before each response.

    A prompt that leaves no room for its response in the model's context is cut after its first
    token, which may be the start of text; its end stays.
    """
    room = base.architecture.context - max_new_tokens
    encoded = [tuple(prompts.encode_prompt(base.tokenizer, sample)) for sample in samples]
    return [ids if len(ids) <= room else (ids[0], *ids[len(ids) - room + 1 :]) for ids in encoded]


def measure_responses(
    base: BaseModel,
    encoded: Sequence[Sequence[int]],
    prompts: Prompts,
    max_new_tokens: int,
    batch_size: int,
) -> Generator[Progress, None, list[str]]:
    """:func:`generate` for encoded prompts, with a yield every few tokens, on all ranks alike."""
    order = by_length([len(ids) for ids in encoded], batch_size)
    batches = [[encoded[index] for index in indices] for indices in order]
    decode = decoder(base, batches, max_new_tokens, prompts.stop_ids(base.tokenizer))
    texts = [""] * len(encoded)
    for done, (indices, batch) in enumerate(zip(order, batches, strict=True)):
        for tokens in decode(batch):
            if tokens is not None:  # the batch's last
                for index, ids in zip(indices, tokens, strict=True):
                    texts[index] = prompts.response_text(base.tokenizer, ids)
            yield Progress("generate", done + (tokens is not None), len(batches))
    return texts


def run_through(work: Generator[object, None, Result]) -> Result:
    """What a generator returns, without looking at what it yields."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: Result = end.value
            return result


def _batch_loss(base: BaseModel, examples: Sequence[Example]) -> LossSum:
    group = base.parallel.group
    share = group.share(examples)
    nats = 0.0
    # A sharded base is called by all ranks or by none: one without a text repeats another's.
    if share or base.parallel.sharded:
        with base.measuring():
            local = token_losses(base, collate(share or examples[:1], base)).double().sum().item()
        nats = local if share else 0.0
    return LossSum(group.total([nats])[0], sum(example.num_labels for example in examples))
