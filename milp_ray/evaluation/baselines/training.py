"""How all trained methods train: the stages, the optimizer and the order of the final job.

The same arguments give the very weights that a final :class:`milp_ray.trial.lifecycle.Trial` gives.
Beneath a user's adapter there may be a frozen one, of all users.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from milp_ray.config.models import OptimizerSettings
from milp_ray.data.records import Sample, UserSplit
from milp_ray.errors import TrialFailed
from milp_ray.evaluation.baselines.interface import Bench
from milp_ray.evaluation.measure import response_loss
from milp_ray.memory.adapters import lora_config, save_adapter
from milp_ray.memory.placement import Placement
from milp_ray.model.batches import sample_examples
from milp_ray.model.full_weights import unfused
from milp_ray.model.row_adapters import LoraWeights, beneath
from milp_ray.training.loop import IsolatedRNG, LossMaker, StageTrainer, Trainable
from milp_ray.trial.stages import Stage, training_stages

Item = TypeVar("Item")
BOTH = ("inject", "instruct")


def everywhere(bench: Bench) -> Placement:
    """The placement that is not searched: every layer, ``memory.defaults.size`` each."""
    architecture = bench.base.architecture
    rank = min(bench.study.memory.defaults.size, architecture.width)
    return Placement(tuple((layer, rank) for layer in range(architecture.num_layers)))


def user_stages(
    bench: Bench, user: UserSplit, parts: Collection[str] = BOTH, *, held_back: bool = False
) -> list[Stage]:
    """What the final job trains on.

    Args:
        bench: see there.
        user: whose texts.
        parts: the stages wanted.
        held_back: keep validation samples, and history from the first one on, out of it.

    Raises:
        TrialFailed: there is nothing.
    """
    study = bench.study
    if held_back:
        study = study.model_copy(update={"final": study.final.model_copy(update={"train_on": "train"})})
    stages = [
        stage
        for stage in training_stages(bench.base, user, bench.prompts, study, "final")
        if stage.name in parts
    ]
    if not stages:
        raise TrialFailed("the user has no samples to train on")
    return stages


def background_stage(bench: Bench, samples: Sequence[Sample]) -> Stage:
    """Stage 2 on the samples of many users.

    Raises:
        TrialFailed: there is none.
    """
    examples = sample_examples(bench.base, bench.prompts, samples)
    if not examples:
        raise TrialFailed("no background user has samples to train on")
    return Stage("instruct", examples, bench.study.final.instruct_epochs)


def background_samples(
    bench: Bench, background: Sequence[UserSplit]
) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """Samples of background users: to train on, and of these to choose by, and to measure by.

    At most ``options.background_samples``, the newest, as many of each user as of any other while
    they last.
    """
    most = bench.options.background_samples
    chosen_from = spread([user.train for user in background], most)
    measured = spread([user.validation for user in background], max(1, most // 4))
    if bench.study.final.train_on == "train":
        return chosen_from, chosen_from, measured
    return spread([(*user.train, *user.validation) for user in background], most), chosen_from, measured


def spread(parts: Sequence[Sequence[Item]], most: int) -> list[Item]:
    """Samples of several users, the newest of each in turn; in the order of users, oldest first."""
    rounds = itertools.zip_longest(*(range(len(part) - 1, -1, -1) for part in parts))
    pairs = ((user, place) for one in rounds for user, place in enumerate(one) if place is not None)
    return [parts[user][place] for user, place in sorted(itertools.islice(pairs, most))]


def run_stages(
    bench: Bench,
    stages: Sequence[Stage],
    optimizer: OptimizerSettings,
    seed: int,
    *,
    rng: IsolatedRNG | None = None,
    trained: Trainable | None = None,
    rank_loss: LossMaker | None = None,
) -> int:
    """Train, stage after stage; returns the tokens trained on.

    Raises:
        TrialFailed: a loss or a gradient is not finite.
    """
    tokens = 0
    for index, stage in enumerate(stages):
        trainer = StageTrainer(
            bench.base,
            stage.examples,
            optimizer,
            epochs=stage.epochs,
            stage=stage.name,
            generator=torch.Generator().manual_seed(2 * seed + index),
            rng=rng,
            trained=trained,
            rank_loss=rank_loss,
        )
        tokens += sum(progress.tokens for progress in trainer)
    return tokens


@contextlib.contextmanager
def trained_lora(
    bench: Bench,
    placement: Placement,
    stages: Sequence[Stage],
    rate: float,
    seed: int,
    below: LoraWeights | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> Iterator[int]:
    """Inside the block a freshly trained adapter is on the base; gives the tokens trained on.

    Args:
        bench: see there.
        placement: of the LoRAs.
        stages: to train.
        rate: the learning rate.
        seed: of the LoRA weights, the order of texts and dropout.
        below: a frozen adapter that is on the base, too.
        start: weights of an adapter of this placement that the training starts from; None: fresh.

    Raises:
        TrialFailed: a loss or a gradient is not finite.
    """
    base, memory = bench.base, bench.study.memory
    config = lora_config(placement, base.architecture, memory.scaling, memory.dropout)
    rng = IsolatedRNG(seed, base.device)
    optimizer = bench.optimizer.model_copy(update={"learning_rate": rate})
    whole = contextlib.nullcontext() if below is None else unfused(base)
    with whole, beneath(base, below):
        with rng.active():
            attached = base.attach(config)
        try:
            if start is not None:
                attached.load(start)
            yield run_stages(bench, stages, optimizer, seed, rng=rng if memory.dropout else None)
        finally:
            base.detach()


def save_lora(bench: Bench, folder: Path, placement: Placement, user: str) -> None:
    """Write the adapter that is on the base, in PEFT's layout.

    Raises:
        StorageError: the folder cannot be written.
    """
    attached, model = bench.base.attached, bench.study.model
    assert attached is not None
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_adapter(attached, folder, model.path, model.revision, placement=placement.key, user=user)


def validation_loss(bench: Bench, samples: Sequence[Sample]) -> float:
    """The loss of samples' responses with what is on the base, nats per token."""
    return response_loss(bench.base, samples, bench.prompts, bench.study.trial.eval_batch_size).mean
