"""Greedy continuations of encoded prompts, with whatever memory sits on the base.

Two ways to the same tokens, up to floating-point rounding. *Growing*: a cache that grows, and rows that leave
the batch as soon as they end; also where ranks share the base. *Fixed*: on a GPU, where one new token for a
few rows takes much longer to start from Python than to compute; cache and rows keep their sizes, so that a
step can be captured once as a CUDA graph and replayed for every token of every batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from milp_ray.model.base import BaseModel
from milp_ray.model.cuda_graphs import Capture, Pool, Work

_WORTH = 24  # replays that pay for a capture
_LOOK = 8  # tokens between two looks at whether all rows have ended, for each of which the GPU stands still


class Decoder(Protocol):
    """Continues prompts, batch after batch."""

    def __call__(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[list[int]] | None]:
        """At last what each prompt is continued with, end token excluded; until then None every few tokens,
        on all ranks alike, so that the caller can stop, report, or work for somebody else."""
        ...


def decoder(
    base: BaseModel,
    batches: Sequence[Sequence[Sequence[int]]],
    max_new_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
) -> Decoder:
    """A decoder for these batches of prompts; ranks that share the base each ask for one alike.

    A response ends before any of ``stop_ids`` (the end of a chat's turn), and of the base's own.
    """
    fixed = base.fused and base.capturable and base.parallel.group.size == 1
    if fixed and len(batches) * max_new_tokens >= _WORTH:
        rows = max(map(len, batches))
        longest = max(len(prompt) for prompts in batches for prompt in prompts)
        cache = fixed_cache(base, longest + max_new_tokens)
        if cache is not None:
            return Fixed(base, cache, rows, max_new_tokens, stop_ids=stop_ids)
    return Growing(base, max_new_tokens, stop_ids)


def fixed_cache(base: BaseModel, room: int) -> Cache | None:
    """A cache of fixed size for ``room`` tokens; None where attention slides over fewer.

    A window that holds them all never slides: the layer is like one without. (A sliding one counts its tokens
    in Python too, which a replayed step would not do.)
    """
    layers = StaticCache(config=base.model.config, max_cache_len=room).layers
    known = all(type(layer) in (StaticLayer, StaticSlidingWindowLayer) for layer in layers)
    if not known or min(layer.max_cache_len for layer in layers) < room:
        return None
    return Cache(layers=[StaticLayer(max_cache_len=room) for _ in layers])


class Growing:
    """See the module; ``max_new_tokens`` at most are made of each prompt."""

    def __init__(self, base: BaseModel, max_new_tokens: int, stop_ids: frozenset[int] = frozenset()) -> None:
        self._base, self._most, self._stop_ids = base, max_new_tokens, stop_ids

    def __call__(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[list[int]] | None]:
        """See :class:`Decoder`; each rank continues its share, and gets all."""
        base, group = self._base, self._base.parallel.group
        mine = _Rows(base, group.share(prompts), self._stop_ids)
        for made in range(self._most):
            # As long as any rank has rows left all go on, so that they pause alike. A divided base is called
            # by all of them or by none, and may take a second for a token.
            if base.parallel.sharded or made % _LOOK == 0:
                if not group.any(mine.going):
                    break
                if made:
                    yield None
            with base.measuring():
                if mine.going:
                    mine.step()
                elif base.parallel.sharded:
                    mine.idle()
        result: list[list[int]] = [[] for _ in prompts]
        for rank, part in enumerate(group.all_gather(mine.tokens)):
            result[rank :: group.size] = part
        yield result


class _Rows:
    """Greedy continuations of some prompts, maybe none. Rows leave the batch as soon as they end.

    Attributes:
        tokens: what each prompt was continued with so far.
    """

    def __init__(self, base: BaseModel, prompts: Sequence[Sequence[int]], stop_ids: frozenset[int]) -> None:
        self._base = base
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self._stop = torch.tensor(sorted(base.stop_ids | stop_ids), device=base.device)
        self._cache = DynamicCache(config=base.model.config)
        self._rows = torch.arange(len(prompts), device=base.device)
        if prompts:
            self._ids, self._mask, self._positions = _left_padded(base, prompts)

    @property
    def going(self) -> bool:
        """Whether there is a row that has not ended."""
        return len(self._rows) > 0

    def step(self) -> None:
        """One more token for every row."""
        chosen = self._base.logits(
            _last,
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
        self._base.logits(_last, input_ids=ids, position_ids=torch.full_like(ids, offset), use_cache=False)


class Fixed:
    """See the module.

    Args:
        base: whole on its device.
        cache: of :func:`fixed_cache`, with room for the longest prompt and ``max_new_tokens``.
        rows: prompts of a batch at most.
        max_new_tokens: at most made of each prompt.
        capture: captures a step, as :class:`milp_ray.model.cuda_graphs.Pool` does.
        stop_ids: end a response, beside the base's own.
    """

    def __init__(
        self,
        base: BaseModel,
        cache: Cache,
        rows: int,
        max_new_tokens: int,
        capture: Capture | None = None,
        stop_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._base, self._cache, self._most = base, cache, max_new_tokens
        self._capture = capture or Pool(base)
        device, long = base.device, torch.long
        self._stop_ids = base.stop_ids | stop_ids
        self._stop = torch.tensor(sorted(self._stop_ids), device=device)
        self._ids = torch.zeros(rows, 1, dtype=long, device=device)
        self._positions = torch.zeros(rows, 1, dtype=long, device=device)
        self._mask = torch.zeros(rows, cache.layers[0].max_cache_len, dtype=long, device=device)
        self._made = torch.zeros(rows, max_new_tokens, dtype=long, device=device)
        self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self._slot = torch.zeros(rows, 1, dtype=long, device=device)  # of the cache, for the next token
        self._count = torch.zeros(rows, 1, dtype=long, device=device)  # tokens made
        self._steps = 0
        self._again: Work | None = None

    def __call__(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[list[int]] | None]:
        """See :class:`Decoder`."""
        with self._base.measuring():
            self._begin(prompts)
        for made in range(1, self._most):
            if made % _LOOK == 0:
                if bool(self._ended.all()):
                    break
                yield None
            with self._base.measuring():
                self._next()
        found = self._made[: len(prompts), : int(self._count[0, 0])].tolist()
        yield [self._until_end(row) for row in found]

    def _begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """The prompts through the model, and the first token of each."""
        rows = len(self._ids)
        ids, mask, positions = _left_padded(self._base, [*prompts, *[prompts[0]] * (rows - len(prompts))])
        width = ids.shape[1]
        self._cache.reset()
        self._mask.zero_()
        self._mask[:, :width] = mask
        self._ended.zero_()
        self._count.zero_()
        self._slot.fill_(width)
        chosen = self._forward(ids, positions)
        self._positions.copy_(positions[:, -1:])
        self._take(chosen)

    def _next(self) -> None:
        """One more token for every row: the first time as usual, to ready what no graph can hold."""
        if self._steps == 1:
            self._again = self._capture(self._step)
        self._steps += 1
        (self._again or self._step)()

    def _step(self) -> Tensor:
        chosen = self._forward(self._ids, self._positions)
        self._take(chosen)
        return chosen

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self._base.logits(
            _last,
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).argmax(-1)

    def _take(self, chosen: Tensor) -> None:
        """Put the chosen tokens where the next step finds them; all on the device."""
        self._made.scatter_(1, self._count, chosen[:, None])
        self._ended |= (chosen[:, None] == self._stop).any(1)
        self._ids.copy_(chosen[:, None])
        self._mask.scatter_(1, self._slot, 1)
        self._positions += 1
        self._slot += 1
        self._count += 1

    def _until_end(self, tokens: list[int]) -> list[int]:
        stop = self._stop_ids
        return tokens[: next((at for at, token in enumerate(tokens) if token in stop), len(tokens))]


def _last(hidden: Tensor) -> Tensor:
    return hidden[:, -1]


def _left_padded(base: BaseModel, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and positions, ``B x T`` each, padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[base.pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    rows = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    mask = torch.tensor(rows, device=base.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0) + base.architecture.position_offset
    return torch.tensor(ids, device=base.device), mask, positions
