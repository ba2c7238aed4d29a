"""Bases of few layers: every method trains on each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from milp_ray.config.models import ModelSettings
from milp_ray.model.base import BaseModel, load_base
from tests.conftest import SHALLOW_LAYERS, TINY_NAMES, saved_tiny


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseModel]:
    """As for all tests, with fewer layers."""
    root = tmp_path_factory.mktemp("shallow")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        folders = {name: saved_tiny(root / name, name, SHALLOW_LAYERS) for name in TINY_NAMES}
    return {name: load_base(ModelSettings(path=str(path), device="cpu")) for name, path in folders.items()}


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory, tiny_bases: dict[str, BaseModel]) -> Path:
    """The folder of a sentence encoder with random weights."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
        )
        BertModel(config).save_pretrained(folder)
    tiny_bases["llama"].tokenizer.save_pretrained(folder)
    return folder
