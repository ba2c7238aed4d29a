"""Token ids of texts, batches of them, and the loss of their labels.

A label is a token that the loss counts. Whether a token is one is decided by its position, never by
its id. Shapes: ``B`` texts of a batch, ``T`` tokens of its longest, ``k`` labels.

Texts are padded on the right. A causal model attends to the left, so no attention mask is needed:
a real token sees the same in any batch. RoBERTa gets its positions, which it would otherwise read
off its padding id. Does *not* cover generation (:mod:`milp_ray.evaluation.decoding`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample

if TYPE_CHECKING:
    from milp_ray.model.base import BaseModel

IGNORE_INDEX = -100
"""The label of a position that the loss leaves out, as torch and transformers have it."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a text: a prompt, whose tokens are no labels, and what follows, which are.

    Attributes:
        ids: of the whole text.
        prompt_length: tokens before the first label, at least 1: nothing predicts a first token.
    """

    ids: tuple[int, ...]
    prompt_length: int

    @property
    def num_labels(self) -> int:
        """Number of tokens that the loss counts."""
        return len(self.ids) - self.prompt_length

    def __repr__(self) -> str:  # token ids are user text
        return f"Example(<{len(self.ids)} tokens>, prompt_length={self.prompt_length})"


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded token ids and their labels.

    Attributes:
        ids: ``B x T``.
        target_positions: where the labels are predicted, ``k`` indices of the ``B x (T - 1)``
            positions, flattened. Indices, since a mask would have the GPU wait for their number.
        labels: token ids, ``k``; :data:`IGNORE_INDEX` where a position is padding.
        num_tokens: real (unpadded) tokens.
    """

    ids: Tensor
    target_positions: Tensor
    labels: Tensor
    num_tokens: int

    @property
    def num_labels(self) -> int:
        """``k``."""
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes that a batch is padded to: texts, positions that the model sees of each, labels."""

    rows: int
    positions: int
    num_labels: int


def history_examples(base: BaseModel, prompts: Prompts, texts: Sequence[str]) -> list[Example]:
    """Texts of stage 1: every token but the first is a label. Texts of one token are left out."""
    encoded = (tuple(prompts.encode_history(base.tokenizer, text)) for text in texts)
    return [Example(ids, 1) for ids in encoded if len(ids) > 1]


def sample_examples(base: BaseModel, prompts: Prompts, samples: Sequence[Sample]) -> list[Example]:
    """Samples of stage 2: the response and its end token are labels."""
    encoded = [prompts.encode_sample(base.tokenizer, sample) for sample in samples]
    examples = [Example(tuple(one.input_ids), max(one.prompt_length, 1)) for one in encoded]
    return [example for example in examples if example.num_labels > 0]


def collate(examples: Sequence[Example], base: BaseModel, shape: Shape | None = None) -> Batch:
    """A batch on the base's device, padded on the right to the longest of ``examples``.

    Args:
        examples: at least one.
        base: whose device, and padding.
        shape: what to pad to instead; labels that are added are :data:`IGNORE_INDEX`.
    """
    longest = max(len(example.ids) for example in examples) if shape is None else shape.positions + 1
    rows = [list(example.ids) + [base.pad_id] * (longest - len(example.ids)) for example in examples]
    target_positions: list[int] = []
    labels: list[int] = []
    for row, example in enumerate(examples):
        first = row * (longest - 1)  # of the row's positions; position i predicts token i + 1
        target_positions += range(first + example.prompt_length - 1, first + len(example.ids) - 1)
        labels += example.ids[example.prompt_length :]
    if shape is not None:
        rows += [[base.pad_id] * longest] * (shape.rows - len(rows))
        target_positions += [0] * (shape.num_labels - len(target_positions))
        labels += [IGNORE_INDEX] * (shape.num_labels - len(labels))
    positions_there, labels_there = _to_device([target_positions, labels], base.device)
    num_tokens = sum(len(example.ids) for example in examples)
    return Batch(_to_device(rows, base.device), positions_there, labels_there, num_tokens)


def _to_device(numbers: list[list[int]], device: torch.device) -> Tensor:
    """A tensor on the device, without waiting for what that is busy with."""
    made = torch.tensor(numbers)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made


def token_losses(base: BaseModel, batch: Batch) -> Tensor:
    """Negative log-likelihood of each label, in nats: fp32, ``k``; 0 for :data:`IGNORE_INDEX`.

    Logits are computed at the labels' positions alone: of a large vocabulary, those of all
    positions would take most of the memory.
    """
    logits = token_logits(
        base, batch, lambda hidden: hidden.flatten(0, 1).index_select(0, batch.target_positions)
    )
    return functional.cross_entropy(logits.float(), batch.labels, reduction="none", ignore_index=IGNORE_INDEX)


def token_logits(base: BaseModel, batch: Batch, select: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits ``k x v`` of ``k x h`` that ``select`` takes of hidden states, ``B x (T - 1) x h``."""
    inputs = batch.ids[:, :-1]
    offset, positions = base.architecture.position_offset, None
    if offset:  # otherwise the model counts so itself
        positions = torch.arange(offset, offset + inputs.shape[1], device=inputs.device).expand_as(inputs)
    return base.logits(select, input_ids=inputs, position_ids=positions, use_cache=False)


class RankLoss:
    """This rank's share of a batch's mean loss; the sum over the ranks is that mean.

    Args:
        base: with an adapter attached.
        batch: the texts of this rank.
        num_labels: of the whole batch, of all ranks; infinite where this rank has no text of its
            own: it goes through another rank's, with a loss of 0.
    """

    def __init__(self, base: BaseModel, batch: Batch, num_labels: float | Tensor) -> None:
        self._base, self._batch, self._num_labels = base, batch, num_labels

    def __call__(self) -> Tensor:
        """The loss, a scalar with a graph of gradients."""
        return token_losses(self._base, self._batch).sum() / self._num_labels

    def backward(self) -> Tensor:
        """Add its gradients to those of the parameters; returns the loss, a scalar."""
        loss = self()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def release(self) -> bool:
        """Free what memory is held for speed.

        Returns:
            Whether there was any, so that ``backward`` is worth a second try. The first one may
            have changed some of the gradients.
        """
        return False


def shuffled(lengths: Sequence[int], size: int, order: torch.Generator, window: int = 16) -> list[list[int]]:
    """Indices of the batches of one pass over texts of the given lengths, in random order.

    Texts are shuffled, then sorted by length within windows of ``window`` batches, so that a batch
    wastes little on padding while each pass still mixes differently; then the batches are shuffled.
    """
    permutation = torch.randperm(len(lengths), generator=order).tolist()
    batches = []
    for start in range(0, len(permutation), size * window):
        part = sorted(permutation[start : start + size * window], key=lambda index: lengths[index])
        batches += [part[first : first + size] for first in range(0, len(part), size)]
    return [batches[index] for index in torch.randperm(len(batches), generator=order).tolist()]


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices of batches for measuring, longest first: memory runs out at once or not at all."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[first : first + size] for first in range(0, len(order), size)]
