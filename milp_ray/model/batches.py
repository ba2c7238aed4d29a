"""Texts as token ids, batches of them, and the loss of the tokens that count.

Shapes: ``B`` texts of a batch, ``T`` tokens of its longest. Texts are padded on the right and nothing attends
to the right, so that no attention mask is needed: what a real token sees is the same in any batch. Positions
are given to RoBERTa, which would otherwise read them off its padding id. Which tokens count is decided
by position, never by token id. Does *not* cover generation (:mod:`milp_ray.evaluation.decoding`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample

if TYPE_CHECKING:
    from milp_ray.model.base import BaseModel

Made = TypeVar("Made")
_NOTHING = -100  # in the place of a wanted token


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a text, and the position of the first one that the loss counts (1 or more)."""

    ids: tuple[int, ...]
    start: int

    @property
    def targets(self) -> int:
        """How many of its tokens the loss counts."""
        return len(self.ids) - self.start

    def __repr__(self) -> str:  # token ids are user text
        return f"Example(<{len(self.ids)} tokens>, start={self.start})"


@dataclass(frozen=True, slots=True)
class Batch:
    """What a model sees of a batch, and what the loss counts of it.

    Attributes:
        ids: padded token ids, ``B x T``.
        places: where the ``k`` tokens that count are predicted, in the flattened ``B x (T - 1)`` positions.
            Numbers made beforehand: a mask would have the GPU wait until its ones are counted.
        wanted: these tokens' ids.
        tokens: real (unpadded) tokens.
    """

    ids: Tensor
    places: Tensor
    wanted: Tensor
    tokens: int

    @property
    def targets(self) -> int:
        """``k``."""
        return len(self.wanted)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes that a batch is padded to: texts, tokens of each that the model sees, tokens that count."""

    rows: int
    positions: int
    targets: int


class TokenCache:
    """Encoded texts of the users seen last, least recently used first out.

    The key holds the texts themselves, so that an entry can never be stale.
    """

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._entries: OrderedDict[Hashable, object] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What is kept under ``key``, made by ``make`` when it is not."""
        if key not in self._entries:
            self._entries[key] = make()
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        return self._entries[key]  # type: ignore[return-value]

    def clear(self) -> None:
        """Forget every user's tokens."""
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


def history_examples(base: BaseModel, prompts: Prompts, texts: Sequence[str]) -> list[Example]:
    """The texts of stage 1: every token but the first counts. A text of fewer than two tokens is left out."""
    encoded = (tuple(prompts.encode_history(base.tokenizer, text)) for text in texts)
    return [Example(ids, 1) for ids in encoded if len(ids) > 1]


def sample_examples(base: BaseModel, prompts: Prompts, samples: Sequence[Sample]) -> list[Example]:
    """The samples of stage 2: the response and its end token count."""
    encoded = [prompts.encode_sample(base.tokenizer, sample) for sample in samples]
    examples = [Example(tuple(one.input_ids), max(one.prompt_length, 1)) for one in encoded]
    return [example for example in examples if len(example.ids) > example.start]


def collate(examples: Sequence[Example], base: BaseModel, shape: Shape | None = None) -> Batch:
    """A batch on the base's device, padded on the right to the longest of ``examples`` (at least one).

    Args:
        examples: the texts.
        base: whose device, and padding.
        shape: what to pad to instead. A target that is added has no token that is wanted (-100).
    """
    longest = max(len(example.ids) for example in examples) if shape is None else shape.positions + 1
    rows = [list(example.ids) + [base.pad_id] * (longest - len(example.ids)) for example in examples]
    places: list[int] = []
    wanted: list[int] = []
    for row, example in enumerate(examples):
        first = row * (longest - 1)
        places += range(first + example.start - 1, first + len(example.ids) - 1)
        wanted += example.ids[example.start :]
    if shape is not None:
        rows += [[base.pad_id] * longest] * (shape.rows - len(rows))
        places += [0] * (shape.targets - len(places))
        wanted += [_NOTHING] * (shape.targets - len(wanted))
    tokens = sum(len(example.ids) for example in examples)
    places_there, wanted_there = _there([places, wanted], base.device)
    return Batch(_there(rows, base.device), places_there, wanted_there, tokens)


def _there(numbers: list[list[int]], device: torch.device) -> Tensor:
    """On a device, without a wait for what that is busy with."""
    made = torch.tensor(numbers)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made


def token_losses(base: BaseModel, batch: Batch) -> Tensor:
    """Negative log-likelihood of every token that counts, in nats: fp32, ``batch.targets`` numbers; 0 where
    nothing is wanted.

    Logits are made for those positions only; with a large vocabulary they would dominate otherwise.
    """
    inputs = batch.ids[:, :-1]
    offset, positions = base.architecture.position_offset, None
    if offset:  # otherwise the model counts so itself
        positions = torch.arange(offset, offset + inputs.shape[1], device=inputs.device).expand_as(inputs)
    logits = base.logits(
        lambda hidden: hidden.flatten(0, 1).index_select(0, batch.places),
        input_ids=inputs,
        position_ids=positions,
        use_cache=False,
    )
    return functional.cross_entropy(logits.float(), batch.wanted, reduction="none", ignore_index=_NOTHING)


class Part:
    """This rank's part of the mean loss over a batch's tokens.

    Args:
        base: with an adapter attached.
        batch: of this rank's texts.
        targets: tokens that count in the whole batch, of all ranks; infinite where this rank has no text of
            its own and takes part with another's, which counts for nothing.
    """

    def __init__(self, base: BaseModel, batch: Batch, targets: float | Tensor) -> None:
        self._base, self._batch, self._targets = base, batch, targets

    def __call__(self) -> Tensor:
        """The part, of which gradients can be taken."""
        return token_losses(self._base, self._batch).sum() / self._targets

    def backward(self) -> Tensor:
        """The part; its gradients are added to the parameters'."""
        value = self()
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def let_go(self) -> bool:
        """Give up memory that is held to be faster; whether there was any, and ``backward`` is worth another
        try. It may have added to some of the gradients."""
        return False


def shuffled(lengths: Sequence[int], size: int, order: torch.Generator, window: int = 16) -> list[list[int]]:
    """Indices of the batches of one pass over texts of the given lengths, in random order.

    Texts are shuffled, then sorted by length within windows of ``window`` batches, so that a batch wastes
    little on padding while each pass still mixes differently; then the batches are shuffled.
    """
    permutation = torch.randperm(len(lengths), generator=order).tolist()
    batches = []
    for start in range(0, len(permutation), size * window):
        part = sorted(permutation[start : start + size * window], key=lambda index: lengths[index])
        batches += [part[first : first + size] for first in range(0, len(part), size)]
    return [batches[index] for index in torch.randperm(len(batches), generator=order).tolist()]


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices of batches for measuring: longest first, so that memory runs out at once or not at all."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[first : first + size] for first in range(0, len(order), size)]
