"""Training steps captured as CUDA graphs, once per shape of batch, and replayed from then on.

A step of a 7B model on short texts computes for less time than Python takes to start its thousands
of kernels: the GPU waits for the host. A replayed graph starts them all at once. A graph has fixed
sizes, so batches are padded to a few shapes (:class:`~milp_ray.model.batches.Shape`), and a shape
is captured only if it recurs often enough. LoRA dropout (random numbers) and DeepSpeed cannot be
captured; where a capture fails, steps run eagerly.

A graph holds one rank's forward and backward pass, which adds to the gradients that the parameters
have. The optimizer's step is not in it.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from milp_ray.model.batches import Batch, Example, RankLoss, Shape, collate
from milp_ray.model.limits import is_out_of_memory

if TYPE_CHECKING:
    from milp_ray.model.base import BaseModel

_LOG = logging.getLogger(__name__)
_MIN_USES = 5  # of a graph: its capture takes as long as three or four steps
_BUCKETS = 8  # lengths that batches are padded to
_MIN_BUCKET = 16  # tokens between two such lengths

Work = Callable[[], Tensor]
Capture = Callable[[Work], Work | None]


class Graphs:
    """Makes the losses of a stage's batches, captured or not; they are valid as long as this is.

    Args:
        base: with an adapter attached, fused, on a GPU.
        batches: of the whole stage, each the texts of this rank.
        capture: captures a step, as :class:`Pool` does.
    """

    def __init__(
        self,
        base: BaseModel,
        batches: Sequence[Sequence[Example]],
        capture: Capture | None = None,
    ) -> None:
        self._base, self._pool = base, capture or Pool(base)
        self._rows = max(map(len, batches))
        self._longest = max(_positions(texts) for texts in batches)
        self._bucket = max(_MIN_BUCKET, -(-self._longest // _BUCKETS))
        self._uses_left = Counter(self.shape(texts) for texts in batches)
        self._captured: dict[Shape, _CapturedLoss] = {}
        self._enabled = True
        self._warm = False

    def shape(self, texts: Sequence[Example]) -> Shape:
        """The shape that a batch is padded to: one of few."""
        positions = min(_round_up(_positions(texts), self._bucket), self._longest)
        num_labels = sum(text.num_labels for text in texts)
        return Shape(self._rows, positions, _round_up(num_labels, -(-self._rows * positions // 4)))

    def rank_loss(self, texts: Sequence[Example], num_labels: float) -> RankLoss:
        """The loss of a batch; see :class:`~milp_ray.model.batches.RankLoss`.

        The next one may be made as soon as its ``backward`` has returned: the device need not be
        done yet.
        """
        shape = self.shape(texts)
        left = self._uses_left[shape]
        self._uses_left[shape] -= 1
        warm, self._warm = self._warm, True  # the first step sets up what no graph can hold
        if self._enabled and shape not in self._captured and warm and left >= _MIN_USES:
            self._captured[shape] = _CapturedLoss(self, self._base, shape)
        if (loss := self._captured.get(shape)) is not None:
            loss.fill(collate(texts, self._base, shape), num_labels)
            return loss
        return _EagerLoss(self, self._base, collate(texts, self._base), num_labels)

    def capture(self, work: Work) -> Work | None:
        """See :meth:`Pool.__call__`. After a failure nothing is captured, and no graph kept."""
        replay = self._pool(work) if self._enabled else None
        if replay is None:
            self.close()
        return replay

    def close(self) -> bool:
        """Free all graphs, and capture no more; returns whether there were any."""
        self._enabled = False
        dropped = [loss.drop_graph() for loss in self._captured.values()]
        self._captured.clear()
        return any(dropped)


class _EagerLoss(RankLoss):
    """A loss that is computed kernel by kernel, while graphs of other shapes hold memory."""

    def __init__(self, graphs: Graphs, base: BaseModel, batch: Batch, num_labels: float | Tensor) -> None:
        super().__init__(base, batch, num_labels)
        # Weak: graphs hold losses, and a cycle would keep their memory until a full collection.
        self._graphs: Graphs = weakref.proxy(graphs)

    def release(self) -> bool:
        return self._graphs.close()


class _CapturedLoss(_EagerLoss):
    """The loss of the batch that was filled in last, of batches of one shape."""

    def __init__(self, graphs: Graphs, base: BaseModel, shape: Shape) -> None:
        device = base.device
        ids = torch.full((shape.rows, shape.positions + 1), base.pad_id, device=device)
        target_positions, labels = torch.zeros(2, shape.num_labels, dtype=torch.long, device=device)
        self._whole_labels = torch.ones((), device=device)
        super().__init__(graphs, base, Batch(ids, target_positions, labels, 0), self._whole_labels)
        self._replay: Work | None = None

    def fill(self, batch: Batch, num_labels: float) -> None:
        """Copy a batch into the graph's memory, behind whatever the device is busy with."""
        self._batch.ids.copy_(batch.ids, non_blocking=True)
        self._batch.target_positions.copy_(batch.target_positions, non_blocking=True)
        self._batch.labels.copy_(batch.labels, non_blocking=True)
        self._whole_labels.fill_(num_labels)

    def backward(self) -> Tensor:
        if self._replay is None:
            self._replay = self._graphs.capture(super().backward)
        return self._replay() if self._replay is not None else super().backward()

    def drop_graph(self) -> bool:
        """Run eagerly from now on; returns whether there was a graph."""
        replay, self._replay = self._replay, None
        return replay is not None


class Pool:
    """Captures pieces of work that never run at the same time, in one pool of GPU memory.

    Args:
        base: whose work it is; ``base.capturable`` becomes False where a capture fails for good.
    """

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._handle: Any = None

    def __call__(self, work: Work) -> Work | None:
        """Capture a piece of work, without doing it.

        Args:
            work: done once before, on whatever numbers. It must not read from the GPU, draw random
                numbers or branch on values.

        Returns:
            A function that replays it, the same kernels on the same memory; None where it cannot be
            captured.
        """
        stream = torch.cuda.current_stream()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._handle):
                result = work()
        except RuntimeError as error:  # no memory for it, or a kernel that cannot be captured
            torch.cuda.set_stream(stream)  # torch keeps that of a capture that cannot be ended
            # Memory may do for the next one. A kernel that cannot be captured now never will be.
            if not any(map(is_out_of_memory, (error, error.__context__ or error))):
                self._base.capturable = False
            _LOG.warning("not captured, and slower for it: %s", str(error).split("\n")[0])
            return None
        self._handle = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def _positions(texts: Sequence[Example]) -> int:
    """Positions of the longest text that the model sees: of all tokens but the last."""
    return max(len(text.ids) for text in texts) - 1


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
