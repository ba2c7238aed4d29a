"""Greedy decoding of encoded prompts, with whatever adapter is on the base.

Two decoders give the same tokens, up to floating-point rounding:

- :class:`DynamicCacheDecoder`: its key-value cache grows, and rows that have ended leave the batch.
  It is the one for a CPU, and for ranks that share the base.
- :class:`StaticCacheDecoder`: for a GPU, where Python takes much longer to start one token of a few
  rows than the GPU takes to compute it. Cache and rows keep their sizes, so that a step is captured
  once as a CUDA graph, and replayed for every token of every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, StaticLayer, StaticSlidingWindowLayer

from milp_ray.model.base import BaseModel
from milp_ray.model.cuda_graphs import Capture, Pool, Work

_MIN_REPLAYS = 24  # that pay for a capture
# Leaving copies the cache of the rows that stay: rows leave together, once this share has ended.
_LEAVING = 0.125
_CHECK_EVERY = 8  # tokens between two checks whether all rows have ended; the GPU waits for each


class Decoder(Protocol):
    """Decodes prompts, batch after batch."""

    def __call__(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[list[int]] | None]:
        """Decode one batch.

        Yields:
            None every few tokens, on all ranks alike, so that the caller can stop, report or
            interleave other work; last the new tokens of each prompt, end token excluded.
        """
        ...


def decoder(
    base: BaseModel,
    batches: Sequence[Sequence[Sequence[int]]],
    max_new_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
) -> Decoder:
    """The decoder for these batches of prompts; each rank that shares the base makes its own.

    Args:
        base: with or without an adapter.
        batches: of token ids.
        max_new_tokens: of each prompt.
        stop_ids: each ends a response, as the base's own do (the end of a chat's turn, say).
    """
    capturable = base.fused and base.capturable and base.parallel.group.size == 1
    if capturable and len(batches) * max_new_tokens >= _MIN_REPLAYS:
        rows = max(map(len, batches))
        longest = max(len(prompt) for prompts in batches for prompt in prompts)
        cache = static_cache(base, longest + max_new_tokens)
        if cache is not None:
            return StaticCacheDecoder(base, cache, rows, max_new_tokens, stop_ids=stop_ids)
    return DynamicCacheDecoder(base, max_new_tokens, stop_ids)


def static_cache(base: BaseModel, max_length: int) -> Cache | None:
    """A static cache for ``max_length`` tokens; None where a sliding window is shorter than that.

    A window that holds all tokens never slides, so its layer gets a plain static cache: that of a
    sliding window counts its tokens in Python, too, which a replayed step does not do.
    """
    layers = StaticCache(config=base.model.config, max_cache_len=max_length).layers
    known = all(type(layer) in (StaticLayer, StaticSlidingWindowLayer) for layer in layers)
    if not known or min(layer.max_cache_len for layer in layers) < max_length:
        return None
    return Cache(layers=[StaticLayer(max_cache_len=max_length) for _ in layers])


class DynamicCacheDecoder:
    """See the module.

    Args:
        base: on one rank or several, which each decode their share of a batch.
        max_new_tokens: of each prompt.
        stop_ids: each ends a response, as the base's own do.
        on_rows: is told, before each pass through the base, which prompts of the batch are in it.
    """

    def __init__(
        self,
        base: BaseModel,
        max_new_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
        on_rows: Callable[[Sequence[int]], object] | None = None,
    ) -> None:
        self._base, self._max_new_tokens, self._stop_ids = base, max_new_tokens, stop_ids
        self._on_rows = on_rows

    def __call__(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[list[int]] | None]:
        """See :class:`Decoder`; each rank decodes its share, and gets all tokens."""
        base, group = self._base, self._base.parallel.group
        rows = _Rows(base, group.share(prompts), self._stop_ids, self._max_new_tokens)
        for step in range(self._max_new_tokens):
            # All ranks go on while any has rows left, so that they pause alike. All of them must
            # call a sharded base, and it may take a second for a token.
            if base.parallel.sharded or step % _CHECK_EVERY == 0:
                if not group.any(rows.unfinished):
                    break
                if step:
                    yield None
            with base.measuring():
                if rows.unfinished:
                    if self._on_rows is not None:
                        self._on_rows([group.rank + group.size * row for row in rows.left])
                    rows.step()
                elif base.parallel.sharded:
                    rows.idle_step()
        result: list[list[int]] = [[] for _ in prompts]
        for rank, tokens in enumerate(group.all_gather(rows.tokens)):
            result[rank :: group.size] = tokens
        yield result


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of a cache that grows without being copied: room for new tokens is taken in advance.

    transformers' own layer copies all that it holds with every token.

    Args:
        room: new tokens that it takes room for, each time that it runs out.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._held: tuple[Tensor, Tensor] | None = None  # keys, values: B x H x (T + room) x D

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add the states of new tokens, ``B x H x T x D`` each; returns those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        if self._held is None or self._held[0].shape[-2] < end:
            before = (self.keys, self.values) if length else ()
            self._held = (self._taken(key_states, end), self._taken(value_states, end))
            for held, old in zip(self._held, before, strict=False):
                held[..., :length, :] = old
        for held, new in zip(self._held, (key_states, value_states), strict=True):
            held[..., length:end, :] = new
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch."""
        if self._held is not None:
            length = self.get_seq_length()
            self._held = (self._held[0][indices], self._held[1][indices])
            self._show(length)

    def _taken(self, like: Tensor, end: int) -> Tensor:
        return like.new_empty((*like.shape[:-2], end + self._room, like.shape[-1]))

    def _show(self, end: int) -> None:
        assert self._held is not None
        self.keys, self.values = (held[..., :end, :] for held in self._held)


def roomy_cache(base: BaseModel, new_tokens: int) -> DynamicCache:
    """A growing cache with room for new tokens; layers of a sliding window stay as they are."""
    cache = DynamicCache(config=base.model.config)
    cache.layers = [
        RoomyLayer(new_tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


class _Rows:
    """The rows of a batch with a growing cache, maybe none; those that have ended leave in time.

    Attributes:
        tokens: new tokens of each prompt so far.
    """

    def __init__(
        self,
        base: BaseModel,
        prompts: Sequence[Sequence[int]],
        stop_ids: frozenset[int],
        max_new_tokens: int,
    ) -> None:
        self._base = base
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self._stop = torch.tensor(sorted(base.stop_ids | stop_ids), device=base.device)
        self._cache = roomy_cache(base, max_new_tokens)
        self._rows = torch.arange(len(prompts), device=base.device)
        self._ended = torch.zeros(len(prompts), dtype=torch.bool, device=base.device)
        if prompts:
            self._ids, self._mask, self._positions = _left_padded(base, prompts)

    @property
    def unfinished(self) -> bool:
        """Whether a row has not ended."""
        return len(self._rows) > 0

    @property
    def left(self) -> list[int]:
        """The rows that are in the batch."""
        kept: list[int] = self._rows.tolist()
        return kept

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
        self._ended |= torch.isin(chosen, self._stop)
        mask, positions = self._mask, self._positions
        ended = int(self._ended.sum())
        if ended and ended >= _LEAVING * len(self._rows):
            kept = (~self._ended).nonzero().squeeze(1)
            self._cache.batch_select_indices(kept)
            self._rows, self._ended = self._rows[kept], self._ended[kept]
            chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
        rows = zip(self._rows.tolist(), chosen.tolist(), self._ended.tolist(), strict=True)
        for row, token, has_ended in rows:
            if not has_ended:
                self.tokens[row].append(token)
        self._ids, self._positions = chosen[:, None], positions[:, -1:] + 1
        self._mask = torch.cat([mask, mask.new_ones(len(chosen), 1)], 1)

    def idle_step(self) -> None:
        """A call of the sharded base whose result is not used: other ranks have rows left."""
        ids = torch.full((1, 1), self._base.pad_id, device=self._base.device)
        offset = self._base.architecture.position_offset
        self._base.logits(_last, input_ids=ids, position_ids=torch.full_like(ids, offset), use_cache=False)


class StaticCacheDecoder:
    """See the module.

    Args:
        base: whole on its device.
        cache: of :func:`static_cache`, for the longest prompt and ``max_new_tokens``.
        rows: prompts of a batch at most.
        max_new_tokens: of each prompt.
        capture: captures a step, as :class:`milp_ray.model.cuda_graphs.Pool` does.
        stop_ids: each ends a response, as the base's own do.
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
        self._base, self._cache, self._max_new_tokens = base, cache, max_new_tokens
        self._capture = capture or Pool(base)
        device, long = base.device, torch.long
        self._stop_ids = base.stop_ids | stop_ids
        self._stop = torch.tensor(sorted(self._stop_ids), device=device)
        self._ids = torch.zeros(rows, 1, dtype=long, device=device)
        self._positions = torch.zeros(rows, 1, dtype=long, device=device)
        self._mask = torch.zeros(rows, cache.layers[0].max_cache_len, dtype=long, device=device)
        self._new_tokens = torch.zeros(rows, max_new_tokens, dtype=long, device=device)
        self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self._cache_position = torch.zeros(rows, 1, dtype=long, device=device)  # of the next token
        self._num_new = torch.zeros(rows, 1, dtype=long, device=device)
        self._steps = 0
        self._replay: Work | None = None

    def __call__(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[list[int]] | None]:
        """See :class:`Decoder`."""
        with self._base.measuring():
            self._prefill(prompts)
        for step in range(1, self._max_new_tokens):
            if step % _CHECK_EVERY == 0:
                if bool(self._ended.all()):
                    break
                yield None
            with self._base.measuring():
                self._decode()
        new_tokens = self._new_tokens[: len(prompts), : int(self._num_new[0, 0])].tolist()
        yield [self._until_stop(row) for row in new_tokens]

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Fill the cache with the prompts, and choose the first token of each."""
        rows = len(self._ids)
        ids, mask, positions = _left_padded(self._base, [*prompts, *[prompts[0]] * (rows - len(prompts))])
        width = ids.shape[1]
        self._cache.reset()
        self._mask.zero_()
        self._mask[:, :width] = mask
        self._ended.zero_()
        self._num_new.zero_()
        self._cache_position.fill_(width)
        chosen = self._forward(ids, positions)
        self._positions.copy_(positions[:, -1:])
        self._append(chosen)

    def _decode(self) -> None:
        """One more token for every row: eagerly at first, which sets up what no graph can hold."""
        if self._steps == 1:
            self._replay = self._capture(self._step)
        self._steps += 1
        (self._replay or self._step)()

    def _step(self) -> Tensor:
        chosen = self._forward(self._ids, self._positions)
        self._append(chosen)
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

    def _append(self, chosen: Tensor) -> None:
        """Make the chosen tokens (one a row) the next step's input, without leaving the device."""
        self._new_tokens.scatter_(1, self._num_new, chosen[:, None])
        self._ended |= (chosen[:, None] == self._stop).any(1)
        self._ids.copy_(chosen[:, None])
        self._mask.scatter_(1, self._cache_position, 1)
        self._positions += 1
        self._cache_position += 1
        self._num_new += 1

    def _until_stop(self, tokens: list[int]) -> list[int]:
        end = (index for index, token in enumerate(tokens) if token in self._stop_ids)
        return tokens[: next(end, len(tokens))]


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
