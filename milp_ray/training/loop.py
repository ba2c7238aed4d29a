"""The optimisation loop of both stages: AdamW on the adapter, linear warm-up and decay, clipped gradients.

One yield per optimizer step, so that the caller can stop, report or interleave. What is trained on and what
is measured afterwards is the trial's business (:mod:`milp_ray.training.trial`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from milp_ray.config.models import OptimizerSettings
from milp_ray.errors import TrialFailed
from milp_ray.training.base import BaseModel
from milp_ray.training.batches import Example, collate, shuffled, token_losses


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
        # Seeding reaches every GPU, so every GPU's generator is put back.
        self._cuda = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
        self._states: list[torch.Tensor] = []
        self._seed = seed

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Inside the block torch's global generators continue this stream; afterwards they are as before."""
        with torch.random.fork_rng(devices=self._cuda):
            if self._states:
                torch.set_rng_state(self._states[0])
                for device, state in zip(self._cuda, self._states[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            else:
                torch.manual_seed(self._seed)
            yield
            self._states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._cuda)]


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


def fit(
    base: BaseModel,
    examples: Sequence[Example],
    settings: OptimizerSettings,
    *,
    epochs: int,
    stage: str,
    order: torch.Generator,
    random: OwnRandom,
) -> Iterator[Progress]:
    """Train the adapter that is attached to ``base`` on ``examples``; a yield after every optimizer step.

    Args:
        base: with an adapter attached.
        examples: at least one.
        settings: of the optimizer; the loss of a step is the mean over the tokens of its batch.
        epochs: passes over the examples.
        stage: name for progress and failures.
        order: draws the order of the examples.
        random: draws everything else (LoRA dropout).

    Raises:
        TrialFailed: a loss or a gradient is NaN or infinite.
    """
    if base.attached is None:
        raise RuntimeError("nothing to train: no adapter is attached")
    parameters = base.attached.parameters()
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    lengths = [len(example.ids) for example in examples]
    steps = steps_of(len(examples), settings.batch_size, epochs)
    done = 0
    for _ in range(epochs):
        for indices in shuffled(lengths, settings.batch_size, order):
            batch = collate([examples[index] for index in indices], base)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate(done, steps, settings.warmup)
            base.attached.train(True)
            try:
                with random.active(), torch.enable_grad():
                    loss = token_losses(base, batch).mean()
                    loss.backward()  # type: ignore[no-untyped-call]
            finally:
                base.attached.train(False)
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            value, size = torch.stack([loss.detach(), norm.detach()]).tolist()
            _check_finite(value, size, done + 1, stage)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            yield Progress(stage, done, steps, value, batch.tokens)


def _check_finite(loss: float, norm: float, step: int, stage: str) -> None:
    for name, value in (("loss", loss), ("gradient", norm)):
        if not math.isfinite(value):
            raise TrialFailed(f"{name} is not finite at step {step} of stage {stage}")
