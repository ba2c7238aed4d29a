"""The optimisation loop of both stages: AdamW on the adapter, linear warm-up and decay, clipped gradients.

AdamW is torch's (docs/references.md: Loshchilov 2019).

Where several ranks share the base, each computes its share of every batch. One yield per optimizer step, so
that the caller can stop, report, interleave, or keep the state. What is trained on and what is measured
afterwards is the trial's business (:mod:`milp_ray.trial.trial`).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_ray.config.models import OptimizerSettings
from milp_ray.errors import TrialFailed
from milp_ray.model.base import BaseModel
from milp_ray.model.batches import Example, RankLoss, collate, shuffled
from milp_ray.model.cuda_graphs import Graphs
from milp_ray.training.optimizer_steps import Stepper, stepping


@dataclass(frozen=True, slots=True)
class Progress:
    """What a trial just did.

    Attributes:
        stage: ``inject``, ``instruct`` (training), ``loss``, ``generate`` (measuring).
        step: how many steps of the stage are done.
        steps: how many it has.
        loss: of this step in nats/token, while training.
        tokens: real (unpadded) tokens that this step trained on.
    """

    stage: str
    step: int
    steps: int
    loss: float | None = None
    tokens: int = 0


class OwnRandom:
    """A stream of torch's global random numbers of its own: seeded once, invisible to everybody else."""

    def __init__(self, seed: int, device: torch.device) -> None:
        # Seeding reaches every GPU, so every GPU's generator is put back; what is drawn is drawn on one.
        self._all = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
        self._own = [device] if device.type == "cuda" else []
        self._states: list[torch.Tensor] = []
        self._seed = seed

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Inside the block torch's global generators continue this stream; afterwards they are as before."""
        with torch.random.fork_rng(devices=self._all):
            if len(self._states) <= len(self._own):
                torch.manual_seed(self._seed)
            if self._states:
                torch.set_rng_state(self._states[0])
            for device, state in zip(self._own, self._states[1:], strict=False):
                torch.cuda.set_rng_state(state, device)
            yield
            self._states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._own)]

    def state(self) -> dict[str, Tensor]:
        """Where the stream is, by number of the generator: 0 the CPU's, 1 the GPU's; none if unused."""
        return {str(index): state for index, state in enumerate(self._states)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on where another stream was: on another kind of device with other numbers, as good as these."""
        self._states = [state[str(index)] for index in range(len(state))]


def steps_of(examples: int, batch_size: int, epochs: int) -> int:
    """Optimizer steps of a stage."""
    return epochs * math.ceil(examples / batch_size)


def rate(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at a step counted from 0: up in a straight line, then down to 1/steps or so.

    Warm-up covers ``ceil(warmup · steps)`` steps and starts above 0: a first step at 0 would be wasted.
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return (steps - step) / max(1, steps - rising)


class Fitting:
    """Trains the adapter that is attached to a base on some examples; iterate over it once.

    Args:
        base: with an adapter attached.
        examples: at least one.
        settings: of the optimizer; the loss of a step is the mean over the tokens of its batch.
        epochs: passes over the examples.
        stage: name for progress and failures.
        order: draws the order of the examples.
        random: draws everything else (LoRA dropout); None: there is nothing to draw.
        done: steps that were made already, in another process maybe.
        optimizer: what :meth:`optimizer` held after these.

    Attributes:
        done: steps that are made.
    """

    def __init__(
        self,
        base: BaseModel,
        examples: Sequence[Example],
        settings: OptimizerSettings,
        *,
        epochs: int,
        stage: str,
        order: torch.Generator,
        random: OwnRandom | None,
        done: int = 0,
        optimizer: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._base, self._examples, self._settings = base, examples, settings
        self._epochs, self._stage, self._order, self._random = epochs, stage, order, random
        self._before = optimizer
        self._stepper: Stepper | None = None
        self.done = done

    def optimizer(self) -> dict[str, Tensor]:
        """This rank's part of the optimizer's state; in the middle of the iteration, after a first step."""
        if self._stepper is None:
            raise RuntimeError("no stage is under way")
        return self._stepper.state()

    def __iter__(self) -> Iterator[Progress]:
        """A yield after every optimizer step.

        Raises:
            TrialFailed: a loss or a gradient is NaN or infinite.
        """
        base, settings = self._base, self._settings
        attached = base.attached
        if attached is None:
            raise RuntimeError("nothing to train: no adapter is attached")
        lengths = [len(example.ids) for example in self._examples]
        steps = steps_of(len(lengths), settings.batch_size, self._epochs)
        order = (shuffled(lengths, settings.batch_size, self._order) for _ in range(self._epochs))
        batches = list(itertools.chain.from_iterable(order))[self.done :]
        texts = [[self._examples[index] for index in batch] for batch in batches]
        unmoved = contextlib.nullcontext()
        with (
            contextlib.closing(self._rank_losses(texts)) as rank_losses,
            stepping(attached.parameters(), settings, base.parallel) as stepper,
        ):
            self._stepper = stepper
            if self._before is not None:
                stepper.load(self._before)
            rank_loss = next(rank_losses, None)
            for indices in batches:
                assert rank_loss is not None
                attached.train(True)
                try:
                    with self._random.active() if self._random else unmoved, torch.enable_grad():
                        numbers = stepper.step(
                            rank_loss, settings.learning_rate * rate(self.done, steps, settings.warmup)
                        )
                finally:
                    attached.train(False)
                rank_loss = next(rank_losses, None)  # while the device computes this step
                value, size = numbers.tolist()
                self.done += 1
                _check_finite(value, size, self.done, self._stage)
                yield Progress(self._stage, self.done, steps, value, sum(lengths[index] for index in indices))
            self._stepper = None

    def _rank_losses(self, batches: Sequence[Sequence[Example]]) -> Generator[RankLoss, None, None]:
        """This rank's share of the loss of every batch, one at a time."""
        base, group = self._base, self._base.parallel.group
        # A rank without a text of its own takes part with another's, which counts for nothing.
        shares = [group.share(texts) for texts in batches]
        mine = [share or texts[:1] for share, texts in zip(shares, batches, strict=True)]
        fixed = base.fused and base.capturable and self._random is None and not base.parallel.zero
        graphs = Graphs(base, mine) if fixed and mine else None
        try:
            for share, texts, whole in zip(shares, mine, batches, strict=True):
                num_labels = sum(text.num_labels for text in whole) if share else math.inf
                if graphs:
                    yield graphs.rank_loss(texts, num_labels)
                else:
                    yield RankLoss(base, collate(texts, base), num_labels)
        finally:
            if graphs:
                graphs.close()


def _check_finite(loss: float, norm: float, step: int, stage: str) -> None:
    for name, value in (("loss", loss), ("gradient", norm)):
        if not math.isfinite(value):
            raise TrialFailed(f"{name} is not finite at step {step} of stage {stage}")
