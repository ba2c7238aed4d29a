"""Loss of given responses, and greedy generation of new ones, with whatever memory sits on the base.

Results do not depend on the batch size (up to floating-point rounding). Text metrics are not covered here:
:mod:`milp_ray.evaluation.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample
from milp_ray.training.base import BaseModel
from milp_ray.training.batches import Example, by_length, collate, sample_examples, token_losses


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
    """Greedy responses to the samples' queries, without surrounding white space, in the samples' order."""
    encoded = encode_prompts(base, samples, prompts, max_new_tokens)
    texts = [""] * len(samples)
    for responses in generations(base, encoded, max_new_tokens, batch_size):
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
    base: BaseModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int
) -> Iterator[dict[int, str]]:
    """:func:`generate` for encoded prompts, batch by batch: index of the prompt to response."""
    for indices in by_length([len(prompt) for prompt in prompts], batch_size):
        tokens = _decode(base, [prompts[index] for index in indices], max_new_tokens)
        yield {
            index: str(base.tokenizer.decode(ids, skip_special_tokens=True)).strip()
            for index, ids in zip(indices, tokens, strict=True)
        }


@torch.inference_mode()
def _batch_loss(base: BaseModel, examples: Sequence[Example]) -> LossSum:
    batch = collate(examples, base)
    return LossSum(token_losses(base, batch).double().sum().item(), batch.targets)


@torch.inference_mode()
def _decode(base: BaseModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    """Greedy continuations, end token excluded. Rows leave the batch as soon as they end."""
    ids, mask = _left_padded(base, prompts)
    positions = (mask.cumsum(1) - 1).clamp(min=0) + base.architecture.position_offset
    stop = torch.tensor(sorted(base.stop_ids), device=base.device)
    cache = DynamicCache(config=base.model.config)
    rows = torch.arange(len(prompts), device=base.device)
    result: list[list[int]] = [[] for _ in prompts]
    for count in range(max_new_tokens):
        with base.autocast():
            output = base.body(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            chosen = base.head(output.last_hidden_state[:, -1]).argmax(-1)
        going = torch.isin(chosen, stop, invert=True)
        if not bool(going.all()):
            kept = going.nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            rows, chosen, mask, positions = rows[kept], chosen[kept], mask[kept], positions[kept]
        for row, token in zip(rows.tolist(), chosen.tolist(), strict=True):
            result[row].append(token)
        if not len(rows) or count + 1 == max_new_tokens:
            break
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
    return result


def _left_padded(base: BaseModel, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, ``B x T`` each, padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[base.pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=base.device), torch.tensor(mask, device=base.device)
