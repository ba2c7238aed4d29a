"""Training steps captured once per shape of batch, as CUDA graphs, and replayed from then on.

A step of a 7B model on short texts keeps a fast GPU busy for less time than its thousands of kernels take to
start from Python: the GPU waits for the host. A captured step starts them all at once. A graph is made for
fixed sizes, so batches are padded to a few (:class:`Shape`), and captured only where that pays. Nothing that
is drawn can be captured (LoRA dropout), nor what DeepSpeed does; where capturing fails, steps go on as usual.

What is in a graph is one rank's forward and backward, adding to the gradients that the parameters have; the
optimizer's step is not.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from milp_ray.model.batches import Batch, Example, Part, Shape, collate
from milp_ray.model.limits import is_out_of_memory

if TYPE_CHECKING:
    from milp_ray.model.base import BaseModel

_LOG = logging.getLogger(__name__)
_WORTH = 5  # uses of a graph that pay for its capture, which takes as long as three or four steps
_GRAINS = 8  # lengths that batches are padded to
_FINEST = 16

Work = Callable[[], Tensor]
Capture = Callable[[Work], Work | None]


class Graphs:
    """Makes the parts of a stage's batches, captured or not; they are of use as long as this is.

    Args:
        base: with an adapter attached, fused, on a GPU.
        batches: what is to come, each this rank's texts of a batch.
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
        self._grain = max(_FINEST, -(-self._longest // _GRAINS))
        self._left = Counter(self.shape(texts) for texts in batches)
        self._parts: dict[Shape, _Replayed] = {}
        self._usable = True
        self._begun = False

    def shape(self, texts: Sequence[Example]) -> Shape:
        """What a batch is padded to: one of few."""
        positions = min(_up(_positions(texts), self._grain), self._longest)
        num_labels = sum(text.num_labels for text in texts)
        return Shape(self._rows, positions, _up(num_labels, -(-self._rows * positions // 4)))

    def part(self, texts: Sequence[Example], targets: float) -> Part:
        """The part of a batch; see :class:`Part`.

        The next one may be made as soon as its ``backward`` has returned: the device need not be done yet.
        """
        shape = self.shape(texts)
        left = self._left[shape]
        self._left[shape] -= 1
        begun, self._begun = self._begun, True  # the first step readies what no graph can hold
        if self._usable and shape not in self._parts and begun and left >= _WORTH:
            self._parts[shape] = _Replayed(self, self._base, shape)
        if (part := self._parts.get(shape)) is not None:
            part.fill(collate(texts, self._base, shape), targets)
            return part
        return _Beside(self, self._base, collate(texts, self._base), targets)

    def capture(self, work: Work) -> Work | None:
        """See :meth:`Pool.__call__`; after a first failure nothing is captured any more, and nothing kept."""
        replay = self._pool(work) if self._usable else None
        if replay is None:
            self.close()
        return replay

    def close(self) -> bool:
        """Let go of all graphs, and capture no more; whether there were any."""
        self._usable = False
        held = [part.drop() for part in self._parts.values()]
        self._parts.clear()
        return any(held)


class _Beside(Part):
    """A part that has graphs beside it, which can make room for it."""

    def __init__(self, graphs: Graphs, base: BaseModel, batch: Batch, targets: float | Tensor) -> None:
        super().__init__(base, batch, targets)
        # Weak: graphs hold parts, and a cycle would keep their memory until the next full collection.
        self._graphs: Graphs = weakref.proxy(graphs)

    def let_go(self) -> bool:
        return self._graphs.close()


class _Replayed(_Beside):
    """The part of whatever batch of one shape was filled in last."""

    def __init__(self, graphs: Graphs, base: BaseModel, shape: Shape) -> None:
        device = base.device
        ids = torch.full((shape.rows, shape.positions + 1), base.pad_id, device=device)
        target_positions, labels = torch.zeros(2, shape.num_labels, dtype=torch.long, device=device)
        self._whole = torch.ones((), device=device)
        super().__init__(graphs, base, Batch(ids, target_positions, labels, 0), self._whole)
        self._replay: Work | None = None

    def fill(self, batch: Batch, targets: float) -> None:
        """Take over a batch, after whatever the device is busy with."""
        self._batch.ids.copy_(batch.ids, non_blocking=True)
        self._batch.target_positions.copy_(batch.target_positions, non_blocking=True)
        self._batch.labels.copy_(batch.labels, non_blocking=True)
        self._whole.fill_(targets)

    def backward(self) -> Tensor:
        if self._replay is None:
            self._replay = self._graphs.capture(super().backward)
        return self._replay() if self._replay is not None else super().backward()

    def drop(self) -> bool:
        """Do without the graph from now on; whether there was one."""
        replay, self._replay = self._replay, None
        return replay is not None


class Pool:
    """Captures pieces of work on a GPU that never run at the same time, in memory that they share.

    Args:
        base: what works; where it turns out that it cannot be captured, that is noted there.
    """

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._handle: Any = None

    def __call__(self, work: Work) -> Work | None:
        """What does the work again: the same kernels, on the same memory.

        Capturing does not do the work. It must have been done once before, on whatever numbers, and must not
        ask the GPU for anything, draw, or take decisions. None where it cannot be captured.
        """
        stream = torch.cuda.current_stream()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._handle):
                result = work()
        except RuntimeError as error:  # no memory for it, or a kernel that cannot be captured
            torch.cuda.set_stream(stream)  # where the capture cannot even be ended, torch stays on its own
            # Memory may do for the next one. What cannot be captured will not be later, and costs a pool.
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
    """What of the longest text the model sees: all but its last token."""
    return max(len(text.ids) for text in texts) - 1


def _up(number: int, grain: int) -> int:
    return -(-number // grain) * grain
