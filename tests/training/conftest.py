"""The tiny Llama with an empty token cache."""

from __future__ import annotations

import pytest

from milp_ray.model.base import BaseModel


@pytest.fixture
def llama(tiny_bases: dict[str, BaseModel]) -> BaseModel:
    base = tiny_bases["llama"]
    base.tokens.clear()
    return base
