"""Trials that fail, are stopped or are refused: the reason is told and the base comes back."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable

import pytest
import torch

from milp_ray.config.models import (
    OptimizerSettings,
    PromptSettings,
    TrialSettings,
)
from milp_ray.data.records import UserSplit
from milp_ray.errors import ModelError, SpaceError, TrialFailed
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel
from milp_ray.trial.lifecycle import Trial
from tests.trial.common import PLACED, STUDY, Snapshot, changed


def test_an_exploding_trial_fails_with_the_step(llama: BaseModel, tiny_user: UserSplit) -> None:
    snapshot = Snapshot(llama)
    wild = OptimizerSettings(learning_rate=1e30, batch_size=4, warmup=0.0)
    with (
        Trial(llama, tiny_user, PLACED, changed(optimizer=wild), seed=5) as trial,
        pytest.raises(TrialFailed, match=r"^(loss|gradient) is not finite at step \d+ of stage inject$"),
    ):
        trial.run()
    snapshot.check()
    assert llama.attached is None
    assert trial.result is None


def failing(after: int, error: Exception | None) -> Callable[..., torch.Tensor]:
    """A loss that is NaN, or raises, at its ``after``-th call."""
    from milp_ray.model.batches import token_losses

    calls = iter(range(1, 1000))

    def loss(base: BaseModel, batch: object) -> torch.Tensor:
        if next(calls) == after:
            if error is not None:
                raise error
            return token_losses(base, batch) * math.nan  # type: ignore[arg-type]
        return token_losses(base, batch)  # type: ignore[arg-type]

    return loss


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (None, TrialFailed, "loss is not finite at step 3 of stage inject"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            TrialFailed,
            "out of memory with 640 trainable parameters (placement 1:2,3:4,11:2)",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
            TrialFailed,
            "out of memory with 640 trainable parameters (placement 1:2,3:4,11:2)",
        ),
        (MemoryError(), TrialFailed, "out of memory with 640 trainable parameters (placement 1:2,3:4,11:2)"),
        (RuntimeError("a real bug"), RuntimeError, "a real bug"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_whatever_happens_the_base_comes_back(
    error: Exception | None,
    kind: type[BaseException],
    reason: str,
    llama: BaseModel,
    tiny_user: UserSplit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    snapshot = Snapshot(llama)
    count = llama.architecture.trainable_params(PLACED)
    monkeypatch.setattr("milp_ray.model.batches.token_losses", failing(3, error))
    trial = Trial(llama, tiny_user, PLACED, STUDY, seed=5)
    with pytest.raises(kind) as caught:
        trial.run()
    assert str(caught.value) == reason.replace("640", str(count))
    snapshot.check()
    assert llama.attached is None


def test_a_measured_nan_fails(
    llama: BaseModel, tiny_user: UserSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milp_ray.evaluation.measure.token_losses", failing(1, None))
    with pytest.raises(TrialFailed, match="measurement"):
        Trial(llama, tiny_user, PLACED, STUDY, seed=5).run()
    assert llama.attached is None


def test_stopping_half_way_gives_the_base_back(llama: BaseModel, tiny_user: UserSplit) -> None:
    snapshot = Snapshot(llama)
    trial = Trial(llama, tiny_user, PLACED, STUDY, seed=5)
    steps = trial.steps()
    next(steps)
    assert llama.attached is not None
    trial.close()
    snapshot.check()
    # The abandoned iterator must not take the next trial's adapter off.
    with Trial(llama, tiny_user, PLACED, STUDY, seed=5) as following:
        running = following.steps()
        next(running)
        del steps, trial
        gc.collect()
        assert llama.attached is not None
        for _ in running:
            pass
        assert following.result is not None
    dropped = Trial(llama, tiny_user, PLACED, STUDY, seed=5).steps()
    next(dropped)
    del dropped
    gc.collect()
    snapshot.check()


def test_two_trials_at_once_are_refused(llama: BaseModel, tiny_user: UserSplit) -> None:
    with Trial(llama, tiny_user, PLACED, STUDY, seed=5) as trial:
        steps = trial.steps()
        next(steps)
        held = llama.attached
        with pytest.raises(RuntimeError, match="another memory"):
            Trial(llama, tiny_user, PLACED, STUDY, seed=6).run()
        assert llama.attached is held
        with pytest.raises(RuntimeError, match="runs once"):
            next(trial.steps())
        for _ in steps:
            pass
        assert trial.result is not None


def test_a_user_without_data_fails(llama: BaseModel, tiny_user: UserSplit) -> None:
    for bare, what in (
        (dataclasses.replace(tiny_user, search_cut=0), "history"),
        (dataclasses.replace(tiny_user, validation=()), "validation"),
    ):
        with pytest.raises(TrialFailed, match=what):
            Trial(llama, bare, PLACED, STUDY, seed=5).run()
        assert llama.attached is None


def test_misfits_are_told_before_anything_runs(llama: BaseModel, tiny_user: UserSplit) -> None:
    with pytest.raises(SpaceError):
        Trial(llama, tiny_user, Placement.from_key("12:2"), STUDY, seed=5)
    with pytest.raises(ModelError, match=r"prompts\.max_length"):
        Trial(llama, tiny_user, PLACED, changed(prompts=PromptSettings(max_length=129)), seed=5)
    with pytest.raises(ModelError, match=r"trial\.max_new_tokens"):
        Trial(llama, tiny_user, PLACED, changed(trial=TrialSettings(max_new_tokens=128)), seed=5)
