"""Requests of many methods and users in common batches: decoded, or measured, side by side.

Method after method and user after user, a batch holds the few samples of one user, and every one of
its tokens costs a pass through the whole base. Here all requests of one base share batches: rows of
about the same length, each with its own adapter (:mod:`milp_ray.model.row_adapters`). The tokens
are those of one request alone, up to floating-point rounding. Requests with weights of their own
(full fine-tuning) share a batch with their like only.
"""

from __future__ import annotations

import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from milp_ray.data.prompts import Prompts
from milp_ray.errors import StorageError
from milp_ray.evaluation.decoding import DynamicCacheDecoder
from milp_ray.evaluation.measure import LossSum
from milp_ray.model.base import BaseModel
from milp_ray.model.batches import Example, collate, token_losses
from milp_ray.model.full_weights import full_weights
from milp_ray.model.limits import is_out_of_memory
from milp_ray.model.row_adapters import LoraWeights, Row, SideBySide, SoftTokens, concatenated, load_lora

Key = TypeVar("Key")
Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and what is to be on the base for it.

    Attributes:
        ids: tokens of the prompt; those that soft tokens stand for, included.
        adapters: folders in PEFT's layout; of several the sum of all is on the base.
        soft_tokens: a file of vectors in place of tokens at ``soft_start``.
        soft_start: see there.
        weights: a file of the base's own parameters, fine-tuned.
    """

    ids: tuple[int, ...]
    adapters: tuple[Path, ...] = ()
    soft_tokens: Path | None = None
    soft_start: int = 0
    weights: Path | None = None

    def __repr__(self) -> str:  # token ids are user text
        return f"Request(<{len(self.ids)} tokens>, adapters={len(self.adapters)})"


@dataclass(frozen=True, slots=True)
class Batching:
    """Bounds of a common batch.

    Attributes:
        rows: requests at most.
        tokens: of all rows together, padding and new tokens included, at most; a single request may
            have more.
        adapters: different ones at most.
        alike: length of the shortest row over that of the longest, at least: a cache is copied with
            every token, padding included.
    """

    rows: int = 64
    tokens: int = 32_768
    adapters: int = 16
    alike: float = 0.7


def decode(
    base: BaseModel,
    requests: Sequence[Request],
    prompts: Prompts,
    max_new_tokens: int,
    batching: Batching | None = None,
) -> list[str]:
    """Greedy responses to all requests, by request.

    Raises:
        StorageError: an adapter is damaged or does not fit the base.
        RuntimeError: an adapter is on the base already.
    """
    stop_ids, texts = prompts.stop_ids(base.tokenizer), [""] * len(requests)
    lengths = [len(request.ids) + max_new_tokens for request in requests]

    def work(indices: Sequence[int], rows: Sequence[Row]) -> None:
        side = SideBySide(base, rows, left=True)
        decoder = DynamicCacheDecoder(base, max_new_tokens, stop_ids, on_rows=side.select)
        with side.on(base):
            found = [tokens for tokens in decoder([requests[i].ids for i in indices]) if tokens is not None]
        for index, ids in zip(indices, found[-1], strict=True):
            texts[index] = prompts.response_text(base.tokenizer, ids)

    for indices, rows in _batches(base, requests, lengths, batching or Batching()):
        _halving(work, indices, rows)
    return texts


def losses(
    base: BaseModel,
    requests: Sequence[Request],
    responses: Sequence[Sequence[int]],
    batching: Batching | None = None,
) -> list[LossSum]:
    """Negative log-likelihood of a given response to each request, by request.

    Args:
        base: without an adapter.
        requests: as for :func:`decode`.
        responses: token ids, end token included; of none the sum is 0.
        batching: bounds of a batch.

    Raises:
        StorageError, RuntimeError: as :func:`decode`.
    """
    result = [LossSum()] * len(requests)
    examples = [
        Example((*request.ids, *response), max(len(request.ids), 1))
        for request, response in zip(requests, responses, strict=True)
    ]
    lengths = [len(example.ids) for example in examples]
    measured = [index for index, example in enumerate(examples) if example.num_labels > 0]
    chosen = [requests[index] for index in measured]

    def work(places: Sequence[int], rows: Sequence[Row]) -> None:
        indices = [measured[place] for place in places]
        batch = [examples[index] for index in indices]
        with SideBySide(base, rows, left=False).on(base), base.measuring():
            nats = token_losses(base, collate(batch, base)).double()
        sizes = [example.num_labels for example in batch]
        for index, part in zip(indices, torch.split(nats, sizes), strict=True):
            result[index] = LossSum(float(part.sum()), len(part))

    for places, rows in _batches(base, chosen, [lengths[i] for i in measured], batching or Batching()):
        _halving(work, places, rows)
    return result


def _batches(
    base: BaseModel, requests: Sequence[Request], lengths: Sequence[int], batching: Batching
) -> Iterator[tuple[list[int], list[Row]]]:
    """Batches of indices with their rows, while the base has what they need."""
    if base.attached is not None:
        raise RuntimeError("an adapter is on the base: take it off first")
    # No fewer than a batch has: rows of one adapter must get the very same object.
    loras: _Kept[tuple[Path, ...], LoraWeights] = _Kept(2 * batching.adapters, partial(_load_loras, base))
    soft: _Kept[Path, Tensor] = _Kept(batching.rows, partial(_load_soft, base))

    def row(index: int) -> Row:
        request = requests[index]
        lora = loras(request.adapters) if request.adapters else None
        vectors = None if request.soft_tokens is None else soft(request.soft_tokens)
        found = None if vectors is None else SoftTokens(vectors, request.soft_start)
        return Row(len(request.ids), lora, found)

    for weights in dict.fromkeys(request.weights for request in requests):
        own = [index for index, request in enumerate(requests) if request.weights == weights]
        with full_weights(base, weights):
            for indices in packed(own, requests, lengths, batching):
                yield indices, [row(index) for index in indices]


def packed(
    indices: Sequence[int], requests: Sequence[Request], lengths: Sequence[int], batching: Batching
) -> Iterator[list[int]]:
    """Divide requests into batches: long ones first, of like lengths, rows of an adapter together.

    Args:
        indices: of the requests to divide.
        requests: all of them.
        lengths: tokens of each, new ones included.
        batching: bounds of a batch.
    """
    waiting = sorted(indices, key=lambda index: -lengths[index])
    while waiting:
        longest = lengths[waiting[0]]
        room = max(1, min(batching.rows, batching.tokens // longest))
        chosen: list[int] = []
        adapters: set[tuple[Path, ...]] = set()
        for index in waiting:
            if len(chosen) == room or lengths[index] < batching.alike * longest:
                break
            wanted = requests[index].adapters
            if not wanted or wanted in adapters or len(adapters) < batching.adapters:
                chosen.append(index)
                adapters |= {wanted} if wanted else set()
        taken = set(chosen)
        waiting = [index for index in waiting if index not in taken]
        yield sorted(chosen, key=lambda index: requests[index].adapters)


def _halving(
    work: Callable[[Sequence[int], Sequence[Row]], None], indices: Sequence[int], rows: Sequence[Row]
) -> None:
    """Do the work on a batch; where memory runs out, on its halves, one after the other."""
    try:
        work(indices, rows)
        return
    except (MemoryError, RuntimeError) as error:
        if len(indices) == 1 or not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold tensors
    torch.cuda.empty_cache()
    middle = len(indices) // 2
    _halving(work, indices[:middle], rows[:middle])
    _halving(work, indices[middle:], rows[middle:])


class _Kept(Generic[Key, Loaded]):
    """What was read lately, so that batches that follow each other read an adapter once."""

    def __init__(self, size: int, load: Callable[[Key], Loaded]) -> None:
        self._size, self._load = size, load
        self._kept: OrderedDict[Key, Loaded] = OrderedDict()

    def __call__(self, key: Key) -> Loaded:
        if key not in self._kept:
            self._kept[key] = self._load(key)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def _load_loras(base: BaseModel, folders: tuple[Path, ...]) -> LoraWeights:
    first, *others = (load_lora(base, folder) for folder in folders)
    return reduce(concatenated, others, first)


def _load_soft(base: BaseModel, file: Path) -> Tensor:
    try:
        vectors: Tensor = load_file(file)["soft_tokens"]
        if vectors.shape[1] != base.architecture.hidden_size:
            raise ValueError("another width")
    except (OSError, ValueError, KeyError, IndexError, SafetensorError) as error:
        raise StorageError(
            f"soft tokens could not be read ({type(error).__name__})",
            where=file.parent.name,
            expected=f"vectors of {base.architecture.hidden_size} numbers, as the method uelp writes them",
            remedy="delete the folder, and they are made again",
        ) from error
    return vectors.to(base.device)
