"""The memory estimate against what a model has and what a backward pass keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from milp_ray.config.models import (
    DataSettings,
    MemorySettings,
    ModelSettings,
    OptimizerSettings,
    PromptSettings,
    Study,
)
from milp_ray.memory.adapters import lora_config
from milp_ray.memory.space import space_from
from milp_ray.model.base import BaseModel
from milp_ray.model.batches import Example, collate, token_losses
from milp_ray.model.pretrained import load_config
from milp_ray.trial.estimate import base_parameters, estimate, trainable_range


def study_on(path: Path) -> Study:
    return Study(
        name="t",
        model=ModelSettings(path=str(path), device="cpu"),
        data=DataSettings(path="x"),
        prompts=PromptSettings(max_length=128),
        memory=MemorySettings(ranks=(4, 8)),
        optimizer=OptimizerSettings(batch_size=4),
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "roberta"])
def test_estimate_follows_the_model(
    name: str, tiny_bases: dict[str, BaseModel], tiny_models: dict[str, Path]
) -> None:
    """What autograd keeps is the larger part of the peak; tensors in flight come on top."""
    base, study = tiny_bases[name], study_on(tiny_models[name])
    found = estimate(base.architecture, load_config(study.model), study)
    assert found.base == sum(4 * parameter.numel() for parameter in base.model.parameters())
    space = space_from(study.memory, 12, 32)
    placement = space.placement(space.largest())
    assert found.lora == 16 * base.architecture.trainable_params(placement)

    base.attach(lora_config(placement, base.architecture))
    weights = {p.untyped_storage().data_ptr() for p in base.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    examples = [Example(tuple(range(3, 131)), 1)] * 4
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = token_losses(base, collate(examples, base))
    saved = sum(size for pointer, size in kept.items() if pointer not in weights)
    del losses
    base.detach()
    assert 0.4 * found.activations < saved < found.activations * 1.3


def test_meta_count_allocates_nothing_and_is_exact(shared: Path) -> None:
    settings = ModelSettings(path=str(shared / "models" / "tiny-base"))
    assert base_parameters(load_config(settings)) == 2_899_072


def test_trainable_range(tiny_bases: dict[str, BaseModel]) -> None:
    architecture = tiny_bases["llama"].architecture
    low, high = trainable_range(architecture, space_from(MemorySettings(ranks=(4, 8)), 12, 32))
    per_rank = 3 * (32 + 48)
    assert (low, high) == (4 * per_rank, 12 * 8 * per_rank)
