"""The training stages of a trial: what each trains on, and how an interrupted training resumes.

Stage 1, ``inject``, is next-token training on the history; stage 2, ``instruct``, trains responses
to queries. A single stage's loop is :mod:`milp_ray.training.loop`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch

from milp_ray.config.models import OptimizerSettings, Study
from milp_ray.data.prompts import Prompts
from milp_ray.data.records import UserSplit
from milp_ray.errors import TrialFailed
from milp_ray.model.base import BaseModel
from milp_ray.model.batches import Example
from milp_ray.training.checkpoint import Checkpoints, TrainingState
from milp_ray.training.loop import IsolatedRNG, Progress, StageTrainer
from milp_ray.trial.encoded import encoded_history, encoded_samples

Phase = Literal["search", "final"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of training."""

    name: Literal["inject", "instruct"]
    examples: list[Example]
    epochs: int


@dataclass
class StageClock:
    """Seconds spent in each part of a trial.

    Attributes:
        part: under way now.
        seconds: by part.
    """

    part: Literal["inject", "instruct", "eval"] = "inject"
    seconds: dict[str, float] = field(
        default_factory=lambda: {"inject": 0.0, "instruct": 0.0, "eval": 0.0},
    )

    def add(self, seconds: float) -> None:
        """Add to the part that is under way."""
        self.seconds[self.part] += seconds

    @property
    def training(self) -> float:
        """Seconds of both stages of training."""
        return self.seconds["inject"] + self.seconds["instruct"]


def training_stages(
    base: BaseModel, user: UserSplit, prompts: Prompts, study: Study, phase: Phase
) -> Iterator[Stage]:
    """The stages of a user's trial, in order; a user without train samples has no stage 2.

    Raises:
        TrialFailed: the user has no history.
    """
    final = phase == "final"
    everything = final and study.final.train_on == "train+validation"
    settings = study.final if final else study.trial
    texts = user.final_history if everything else user.search_history
    examples = encoded_history(base, prompts, texts)
    if not examples:
        raise TrialFailed("the user has no history to inject")
    yield Stage("inject", examples, settings.epochs)
    if final or "instruct" in study.trial.stages:
        yield from instruct_stage(base, user, prompts, study, phase)


def instruct_stage(
    base: BaseModel, user: UserSplit, prompts: Prompts, study: Study, phase: Phase
) -> Iterator[Stage]:
    """Stage 2 alone, on the samples that may teach in this phase; none where there are none."""
    final = phase == "final"
    everything = final and study.final.train_on == "train+validation"
    samples = (*user.train, *user.validation) if everything else user.train
    if examples := encoded_samples(base, prompts, samples):
        yield Stage("instruct", examples, (study.final if final else study.trial).instruct_epochs)


class StagedTraining:
    """Trains the adapter that is on a base, stage after stage, and keeps checkpoints.

    Args:
        base: with an adapter attached.
        stages: of :func:`training_stages`.
        settings: of the optimizer.
        seed: of the order of examples.
        rng: draws LoRA dropout.
        dropout: whether there is any.
        clock: is told which stage is under way.
        checkpoints: where the training's state is written, and resumed from; None: nowhere.

    Attributes:
        tokens: real (unpadded) tokens trained on so far.
    """

    def __init__(
        self,
        base: BaseModel,
        stages: Iterator[Stage],
        settings: OptimizerSettings,
        *,
        seed: int,
        rng: IsolatedRNG,
        dropout: bool,
        clock: StageClock,
        checkpoints: Checkpoints | None,
    ) -> None:
        self._base, self._stages, self._settings, self._seed = base, stages, settings, seed
        self._rng, self._dropout, self._clock, self._checkpoints = rng, dropout, clock, checkpoints
        self._under_way: tuple[int, StageTrainer] | None = None
        self.tokens = 0

    def steps(self) -> Iterator[Progress]:
        """A yield after every optimizer step. Once.

        Raises:
            TrialFailed: nothing to train on, or a loss or a gradient is not finite.
            StorageError: a checkpoint cannot be written.
        """
        resumed = self._resume()
        for index, stage in enumerate(self._stages):
            self._clock.part = stage.name
            if resumed is not None and index < resumed.stage:
                continue
            state = resumed if resumed is not None and index == resumed.stage else None
            trainer = StageTrainer(
                self._base,
                stage.examples,
                self._settings,
                epochs=stage.epochs,
                stage=stage.name,
                generator=torch.Generator().manual_seed(2 * self._seed + index),
                rng=self._rng if self._dropout else None,
                global_step=state.step if state is not None else 0,
                optimizer_state=state.optimizer if state is not None else None,
            )
            for progress in trainer:
                self.tokens += progress.tokens
                self._under_way = (index, trainer)
                if self._checkpoints is not None and self._checkpoints.due(progress.step):
                    self.checkpoint()
                yield progress
            self._under_way = None

    def checkpoint(self) -> None:
        """Write a checkpoint, if a stage is under way; on all ranks after the same step.

        Raises:
            StorageError: it cannot be written; earlier ones are intact.
        """
        if self._checkpoints is None or self._under_way is None or self._base.attached is None:
            return
        index, trainer = self._under_way
        self._checkpoints.save(
            TrainingState(
                index,
                trainer.global_step,
                self.tokens,
                self._clock.training,
                self._base.attached.state(),
                trainer.optimizer_state(),
                self._rng.state(),
            )
        )

    def close(self) -> None:
        """Free the trainer of the stage that is under way."""
        self._under_way = None

    def _resume(self) -> TrainingState | None:
        """Take over the state that an interrupted training left, if there is one."""
        state = self._checkpoints.load() if self._checkpoints is not None else None
        if state is not None and self._base.attached is not None:
            self._base.attached.load(state.adapter)
            self._rng.load(state.random)
            self.tokens, self._clock.seconds["inject"] = state.tokens, state.seconds
        return state
