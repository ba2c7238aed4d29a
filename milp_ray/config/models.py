"""The study file as typed, immutable models; defaults are the paper's (section 3.4, table 6).

"The paper" is MiLP, docs/references.md: Zhang 2024. Every section is a class of a module beside
this one, and exported here. Only shapes and ranges that need no model and no data are checked;
`milp-ray check` does the rest. Reading YAML is :mod:`milp_ray.config.loading`; the commented file
that `milp-ray init` writes is :mod:`milp_ray.config.template`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from milp_ray.config.execution import RaySettings, SimulationSettings, StorageSettings
from milp_ray.config.inputs import (
    COMMIT_PATTERN,
    HUB_NAME,
    ColumnSettings,
    DataSettings,
    ModelSettings,
    PromptSettings,
    SplitSettings,
)
from milp_ray.config.objectives import OBJECTIVES
from milp_ray.config.search import (
    ChooseSettings,
    MemoryDefaults,
    MemorySettings,
    SaasSettings,
    SearchSettings,
    Unit,
)
from milp_ray.config.settings import Settings
from milp_ray.config.training import FinalSettings, OptimizerSettings, TrialSettings

__all__ = [
    "COMMIT_PATTERN",
    "HUB_NAME",
    "NAME_PATTERN",
    "ChooseSettings",
    "ColumnSettings",
    "DataSettings",
    "FinalSettings",
    "MemoryDefaults",
    "MemorySettings",
    "ModelSettings",
    "ObjectiveName",
    "OptimizerSettings",
    "PromptSettings",
    "RaySettings",
    "SaasSettings",
    "SearchSettings",
    "SimulationSettings",
    "SplitSettings",
    "StorageSettings",
    "Study",
    "StudyName",
    "TrialSettings",
]

if TYPE_CHECKING:
    ObjectiveName = str
else:
    ObjectiveName = Literal[tuple(OBJECTIVES)]
TrackerName = Literal["mlflow", "wandb", "tensorboard"]
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


def _plain_name(value: str) -> str:
    if not NAME_PATTERN.fullmatch(value):
        raise ValueError("must be 1 to 40 of a-z, 0-9, '_' and '-', starting with a letter or digit")
    return value


StudyName = Annotated[str, AfterValidator(_plain_name)]


class Study(Settings):
    """A whole study: many users, one base model, one budget."""

    name: StudyName
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    model: ModelSettings
    data: DataSettings
    prompts: PromptSettings = PromptSettings()
    memory: MemorySettings = MemorySettings()
    objectives: Annotated[tuple[ObjectiveName, ...], Field(min_length=1)] = ("loss", "rouge_l")
    optimizer: OptimizerSettings = OptimizerSettings()
    trial: TrialSettings = TrialSettings()
    search: SearchSettings = SearchSettings()
    choose: ChooseSettings = ChooseSettings()
    final: FinalSettings = FinalSettings()
    ray: RaySettings = RaySettings()
    storage: StorageSettings = StorageSettings()
    tracking: Annotated[tuple[TrackerName, ...], Field(strict=False)] = Field(
        (), description="experiment trackers that are told of the run while it goes on"
    )
    simulation: SimulationSettings | None = Field(None, description="null: real trials")

    @field_validator("objectives")
    @classmethod
    def _distinct(cls, value: tuple[ObjectiveName, ...]) -> tuple[ObjectiveName, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names an objective twice")
        if all(OBJECTIVES[name].exact for name in value):
            measured = " or ".join(name for name, declared in OBJECTIVES.items() if not declared.exact)
            raise ValueError(f"needs a measured objective ({measured}) beside {', '.join(value)}")
        return value

    @field_validator("tracking")
    @classmethod
    def _trackers_once(cls, value: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names a tracker twice")
        return value

    @model_validator(mode="after")
    def _device_is_asked_for(self) -> Self:
        if self.model.device == "cuda" and self.ray.gpus_per_worker == 0 and self.simulation is None:
            raise ValueError(
                "model.device is cuda, but ray.gpus_per_worker is 0: give workers a GPU (1, or auto), or set "
                "model.device to auto or cpu"
            )
        return self

    @property
    def data_sections(self) -> dict[str, DataSettings]:
        """All that is read of users, by its place in the file; a comparison has several."""
        return {"data": self.data}

    @property
    def model_sections(self) -> dict[str, ModelSettings]:
        """The base models, by their places in the file."""
        return {"model": self.model}

    @property
    def key_settings(self) -> dict[str, str]:
        """The file with the aliases' key, by its place in the file, if one is named."""
        return {"data.alias_key": self.data.alias_key} if self.data.alias_key is not None else {}

    @property
    def unit(self) -> Unit:
        """Whose placement is searched: ``search.unit``, or what the split's regime asks for."""
        if self.search.unit != "auto":
            return self.search.unit
        return "population" if self.data.split.regime == "by_user" else "user"

    @model_validator(mode="after")
    def _unit_fits(self) -> Self:
        if self.data.split.regime == "by_user" and self.unit == "user":
            raise ValueError(
                "search.unit is user, but with data.split.regime by_user no user has both samples to choose "
                "a placement on and samples to test it on: set search.unit to population or auto"
            )
        if self.unit == "population" and self.search.transfer != "none":
            raise ValueError(
                f"search.transfer is {self.search.transfer!r}, but the search of a population is the only "
                "one of its run and has no other to learn from: set search.transfer to none"
            )
        return self

    @model_validator(mode="after")
    def _policy_has_objective(self) -> Self:
        kind, _, objective = self.choose.policy.partition(":")
        if kind == "best" and objective not in self.objectives:
            raise ValueError(f"choose.policy is {self.choose.policy!r}, but objectives has no {objective!r}")
        return self
