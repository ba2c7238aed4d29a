"""A run with three users' memories, of random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from milp_ray.config.models import Study
from milp_ray.ids import alias_of
from milp_ray.memory.adapters import attach, detach, lora_config, save_adapter
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel
from milp_ray.model.fingerprint import base_fingerprint
from milp_ray.study.run_folder import RunFolder

KEY = b"k" * 32
PLACEMENTS = {"ann": "0:4,1:8", "bob": "1:2", "eve": "0:8,1:8"}
ALIASES = {name: alias_of(name, KEY) for name in PLACEMENTS}


def study_of(base: BaseModel, storage: Path | str, **sections: object) -> Study:
    plain = {
        "name": "small",
        "model": {"path": base.settings.path, "device": "cpu"},
        "data": {"path": "/nowhere/users.jsonl"},
        "storage": {"path": str(storage)},
        "trial": {"max_new_tokens": 6},
    }
    return Study.model_validate(plain | sections)


def remember(base: BaseModel, folder: RunFolder, name: str, key: str, seed: int) -> None:
    alias = ALIASES[name]
    attached = attach(base.model, lora_config(Placement.from_key(key), base.architecture, 1.0))
    generator = torch.Generator().manual_seed(seed)
    for matrix in attached.parameters():
        matrix.data.copy_(0.2 * torch.randn(matrix.shape, generator=generator))
    save_adapter(attached, folder.layout.memory(alias), base.settings.path, placement=key, user=alias)
    detach(base.model, attached)


@pytest.fixture
def base(load_tiny: Callable[[str], BaseModel]) -> BaseModel:
    return load_tiny("llama")


@pytest.fixture
def run(base: BaseModel, tmp_path: Path) -> RunFolder:
    study = study_of(base, tmp_path / "runs")
    folder = RunFolder.create(study, "f" * 64, KEY, base_fingerprint(study.model))
    for seed, (name, key) in enumerate(PLACEMENTS.items()):
        remember(base, folder, name, key, seed)
    scores = {"models": {"base": {"loss": 2.0}, "own": {"loss": 1.5}}}
    folder.layout.scores(ALIASES["ann"]).parent.mkdir(exist_ok=True)
    folder.layout.scores(ALIASES["ann"]).write_text(json.dumps(scores), encoding="utf-8")
    return folder
