"""Each tiny model with a random adapter on it, so that the adapted path is what is compared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from milp_ray.memory.adapters import lora_config
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel


@pytest.fixture(params=["llama", "gpt2", "roberta"])
def base(request: pytest.FixtureRequest, tiny_bases: dict[str, BaseModel]) -> Iterator[BaseModel]:
    base = tiny_bases[request.param]
    attached = base.attach(lora_config(Placement.from_key("2:4,11:8"), base.architecture))
    generator = torch.Generator().manual_seed(3)
    for parameter in attached.parameters():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    yield base
    base.detach()
