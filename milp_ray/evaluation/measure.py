"""Loss of given responses, and greedy generation of new ones, with whatever memory sits on the base.

Results do not depend on the batch size (up to floating-point rounding). Where several ranks share the base,
all call these functions alike; each measures its share of every batch, and all get the whole result. Text
metrics are not covered here: :mod:`milp_ray.evaluation.metrics`.
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


def _batch_loss(base: BaseModel, examples: Sequence[Example]) -> LossSum:
    group = base.parallel.group
    mine = group.share(examples)
    nats = 0.0
    # A divided base is called by all ranks or by none: one without a text of its own repeats another's.
    if mine or base.parallel.sharded:
        with base.measuring():
            found = token_losses(base, collate(mine or examples[:1], base)).double().sum().item()
        nats = found if mine else 0.0
    return LossSum(group.total([nats])[0], sum(example.targets for example in examples))


def _decode(base: BaseModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    """Greedy continuations, end token excluded."""
    parallel = base.parallel
    with base.measuring():
        mine = _Decoding(base, parallel.group.share(prompts))
        for _ in range(max_new_tokens):
            # A divided base is called as long as any rank has rows left, by all.
            if not (parallel.group.any(mine.going) if parallel.sharded else mine.going):
                break
            if mine.going:
                mine.step()
            else:
                mine.idle()
    result: list[list[int]] = [[] for _ in prompts]
    for rank, part in enumerate(parallel.group.gather(mine.tokens)):
        result[rank :: parallel.group.size] = part
    return result


class _Decoding:
    """Greedy continuations of some prompts, maybe none. Rows leave the batch as soon as they end.

    Attributes:
        tokens: what each prompt was continued with so far.
    """

    def __init__(self, base: BaseModel, prompts: Sequence[Sequence[int]]) -> None:
        self._base = base
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self._stop = torch.tensor(sorted(base.stop_ids), device=base.device)
        self._cache = DynamicCache(config=base.model.config)
        self._rows = torch.arange(len(prompts), device=base.device)
        if prompts:
            self._ids, self._mask = _left_padded(base, prompts)
            self._positions = (self._mask.cumsum(1) - 1).clamp(min=0) + base.architecture.position_offset

    @property
    def going(self) -> bool:
        """Whether there is a row that has not ended."""
        return len(self._rows) > 0

    def step(self) -> None:
        """One more token for every row."""
        chosen = self._base.logits(
            lambda hidden: hidden[:, -1],
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        ).argmax(-1)
        going = torch.isin(chosen, self._stop, invert=True)
        mask, positions = self._mask, self._positions
        if not bool(going.all()):
            kept = going.nonzero().squeeze(1)
            self._cache.batch_select_indices(kept)
            self._rows, chosen, mask, positions = self._rows[kept], chosen[kept], mask[kept], positions[kept]
        for row, token in zip(self._rows.tolist(), chosen.tolist(), strict=True):
            self.tokens[row].append(token)
        self._ids, self._positions = chosen[:, None], positions[:, -1:] + 1
        self._mask = torch.cat([mask, mask.new_ones(len(chosen), 1)], 1)

    def idle(self) -> None:
        """A call for nothing, beside ranks that have rows left."""
        ids = torch.full((1, 1), self._base.pad_id, device=self._base.device)
        offset = self._base.architecture.position_offset
        self._base.logits(
            lambda hidden: hidden[:, -1],
            input_ids=ids,
            position_ids=torch.full_like(ids, offset),
            use_cache=False,
        )


def _left_padded(base: BaseModel, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, ``B x T`` each, padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[base.pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=base.device), torch.tensor(mask, device=base.device)
