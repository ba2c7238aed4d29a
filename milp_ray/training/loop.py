"""The training loop of a stage: AdamW on the adapter, linear warm-up and decay, clipped gradients.

AdamW is torch's (docs/references.md: Loshchilov 2019). Where several ranks share the base, each
computes its share of every batch. The loop yields after every optimizer step, so that a caller can
stop, report, interleave other work, or write a checkpoint. What is trained on is decided in
:mod:`milp_ray.trial.stages`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from milp_ray.config.models import OptimizerSettings
from milp_ray.errors import TrialFailed
from milp_ray.model.base import BaseModel
from milp_ray.model.batches import Example, RankLoss, collate, shuffled
from milp_ray.model.cuda_graphs import Graphs
from milp_ray.training.optimizer_steps import Stepper, stepping

LossMaker = Callable[[Sequence[Example], float], RankLoss]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a trial is.

    Attributes:
        stage: ``inject`` or ``instruct`` (training), ``loss`` or ``generate`` (measuring).
        step: steps of the stage that are done.
        steps: steps of the stage.
        loss: of this step, in nats per label; None while measuring.
        tokens: real (unpadded) tokens that this step trained on.
    """

    stage: str
    step: int
    steps: int
    loss: float | None = None
    tokens: int = 0


class IsolatedRNG:
    """A random stream of its own in torch's global generators, which nobody else notices.

    Args:
        seed: of the stream.
        device: on which random numbers are drawn, beside the CPU.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        # Seeding reaches every GPU, so all generators are restored; one of them is drawn from.
        self._all_devices = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
        self._devices = [device] if device.type == "cuda" else []
        self._states: list[Tensor] = []
        self._seed = seed

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """In the block torch's global generators continue this stream; then they are restored."""
        with torch.random.fork_rng(devices=self._all_devices):
            if len(self._states) <= len(self._devices):
                torch.manual_seed(self._seed)
            if self._states:
                torch.set_rng_state(self._states[0])
            for device, state in zip(self._devices, self._states[1:], strict=False):
                torch.cuda.set_rng_state(state, device)
            yield
            self._states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._devices)]

    def state(self) -> dict[str, Tensor]:
        """The generators' states: ``0`` the CPU's, ``1`` the GPU's; empty before the first use."""
        return {str(index): state for index, state in enumerate(self._states)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue a stream. On another kind of device the numbers differ, and are as good."""
        self._states = [state[str(index)] for index in range(len(state))]


def num_steps(num_examples: int, batch_size: int, epochs: int) -> int:
    """Optimizer steps of a stage."""
    return epochs * math.ceil(num_examples / batch_size)


def lr_factor(step: int, total_steps: int, warmup: float) -> float:
    """The factor of the learning rate at a step: linear warm-up to 1, then linear decay.

    Warm-up covers ``ceil(warmup · total_steps)`` steps and starts above 0: a first step at 0 would
    be wasted. The last step has about ``1 / total_steps``.

    Args:
        step: from 0.
        total_steps: of the stage.
        warmup: share of the steps, in [0, 1].
    """
    warmup_steps = math.ceil(warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (total_steps - step) / max(1, total_steps - warmup_steps)


class Trainable(Protocol):
    """What a stage trains: an adapter, or anything else with parameters."""

    def parameters(self) -> list[nn.Parameter]:
        """Those that the optimizer steps."""
        ...

    def train(self, mode: bool) -> None:
        """Switch on or off what training alone does, such as dropout."""
        ...


class StageTrainer:
    """Trains the attached adapter on the examples of one stage; iterate over it once.

    Args:
        base: with an adapter attached, unless ``trained`` says what is trained.
        examples: at least one.
        settings: of the optimizer; the loss of a step is the mean over the labels of its batch.
        epochs: passes over the examples.
        stage: its name, for progress and failures.
        generator: draws the order of the examples.
        rng: draws LoRA dropout; None where there is none.
        global_step: steps that another trainer of the stage has done, maybe in another process.
        optimizer_state: what its :meth:`optimizer_state` returned then.
        trained: what is stepped; None: the attached adapter.
        rank_loss: makes the loss of a batch; None: :class:`milp_ray.model.batches.RankLoss` does.

    Attributes:
        global_step: optimizer steps of the stage that are done, over all epochs.
    """

    def __init__(
        self,
        base: BaseModel,
        examples: Sequence[Example],
        settings: OptimizerSettings,
        *,
        epochs: int,
        stage: str,
        generator: torch.Generator,
        rng: IsolatedRNG | None,
        global_step: int = 0,
        optimizer_state: Mapping[str, Tensor] | None = None,
        trained: Trainable | None = None,
        rank_loss: LossMaker | None = None,
    ) -> None:
        self._trained, self._make_loss = trained, rank_loss
        self._base, self._examples, self._settings = base, examples, settings
        self._epochs, self._stage, self._generator, self._rng = epochs, stage, generator, rng
        self._resumed_state = optimizer_state
        self._stepper: Stepper | None = None
        self.global_step = global_step

    def optimizer_state(self) -> dict[str, Tensor]:
        """This rank's part of the optimizer's state, by name. Between two steps, after a first."""
        if self._stepper is None:
            raise RuntimeError("no stage is under way")
        return self._stepper.state()

    def __iter__(self) -> Iterator[Progress]:
        """A yield after every optimizer step.

        Raises:
            TrialFailed: a loss or a gradient is NaN or infinite.
        """
        base, settings = self._base, self._settings
        trained: Trainable | None = self._trained or base.attached
        if trained is None:
            raise RuntimeError("nothing to train: no adapter is attached")
        lengths = [len(example.ids) for example in self._examples]
        total_steps = num_steps(len(lengths), settings.batch_size, self._epochs)
        epochs = (shuffled(lengths, settings.batch_size, self._generator) for _ in range(self._epochs))
        batches = list(itertools.chain.from_iterable(epochs))[self.global_step :]
        texts = [[self._examples[index] for index in batch] for batch in batches]
        no_dropout = contextlib.nullcontext()
        with (
            contextlib.closing(self._rank_losses(texts)) as rank_losses,
            stepping(trained.parameters(), settings, base.parallel) as stepper,
        ):
            self._stepper = stepper
            if self._resumed_state is not None:
                stepper.load(self._resumed_state)
            rank_loss = next(rank_losses, None)
            for indices in batches:
                assert rank_loss is not None
                lr = settings.learning_rate * lr_factor(self.global_step, total_steps, settings.warmup)
                trained.train(True)
                try:
                    with self._rng.active() if self._rng else no_dropout, torch.enable_grad():
                        loss_and_norm = stepper.step(rank_loss, lr)
                finally:
                    trained.train(False)
                rank_loss = next(rank_losses, None)  # while the device computes this step
                loss, grad_norm = loss_and_norm.tolist()
                self.global_step += 1
                _check_finite(loss, grad_norm, self.global_step, self._stage)
                num_tokens = sum(lengths[index] for index in indices)
                yield Progress(self._stage, self.global_step, total_steps, loss, num_tokens)
            self._stepper = None

    def _rank_losses(self, batches: Sequence[Sequence[Example]]) -> Generator[RankLoss, None, None]:
        """This rank's share of the loss of every batch, one at a time."""
        base, group = self._base, self._base.parallel.group
        shares = [group.share(texts) for texts in batches]
        # A rank without a text of its own goes through another's, with a loss of 0.
        local = [share or texts[:1] for share, texts in zip(shares, batches, strict=True)]
        # Random numbers, and what DeepSpeed does, cannot be captured.
        capturable = base.fused and base.capturable and self._rng is None and not base.parallel.zero
        graphs = Graphs(base, local) if capturable and local and self._make_loss is None else None
        try:
            for share, texts, whole in zip(shares, local, batches, strict=True):
                num_labels = sum(text.num_labels for text in whole) if share else math.inf
                if graphs:
                    yield graphs.rank_loss(texts, num_labels)
                elif self._make_loss is not None:
                    yield self._make_loss(texts, num_labels)
                else:
                    yield RankLoss(base, collate(texts, base), num_labels)
        finally:
            if graphs:
                graphs.close()


def _check_finite(loss: float, grad_norm: float, step: int, stage: str) -> None:
    for name, value in (("loss", loss), ("gradient", grad_norm)):
        if not math.isfinite(value):
            raise TrialFailed(f"{name} is not finite at step {step} of stage {stage}")
