"""What all sections of a study file have in common: strict, frozen, and a few types of values."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from milp_ray.storage import is_url, url_fault

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Settings(BaseModel):
    """Base of every section: frozen; unknown keys, wrong types, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def usable_url(value: str) -> str:
    """A path as it is; a URL if it can be used.

    Raises:
        ValueError: what should stand there instead.
    """
    if is_url(value) and (fault := url_fault(value)):
        raise ValueError(fault)
    return value
