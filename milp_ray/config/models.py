"""The study file as typed, immutable models; defaults are the paper's (section 3.4, table 6).

"The paper" is MiLP, docs/references.md: Zhang 2024. Only shapes and ranges that need no model and
no data are checked here; `milp-ray check` does the rest. Reading YAML is
:mod:`milp_ray.config.loading`; the commented file that `milp-ray init` writes is
:mod:`milp_ray.config.template`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from milp_ray.config.execution import RaySettings, SimulationSettings, StorageSettings
from milp_ray.config.factors import FACTORS
from milp_ray.config.inputs import (
    COMMIT_PATTERN,
    HUB_NAME,
    DataSettings,
    ModelSettings,
    PromptSettings,
    SplitSettings,
)
from milp_ray.config.objectives import OBJECTIVES
from milp_ray.config.settings import Positive, Settings
from milp_ray.config.training import FinalSettings, OptimizerSettings, TrialSettings

__all__ = [
    "COMMIT_PATTERN",
    "HUB_NAME",
    "NAME_PATTERN",
    "ChooseSettings",
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
    "TrialSettings",
]

if TYPE_CHECKING:
    ObjectiveName = str
else:
    ObjectiveName = Literal[tuple(OBJECTIVES)]
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class MemoryDefaults(Settings):
    """What a factor is fixed at while it is not searched (paper, table 4)."""

    num: Positive | None = Field(None, description="number of LoRAs; null: one per active layer")
    size: Positive = Field(16, description="rank")
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(None, description="null: all")


class MemorySettings(Settings):
    """The search space of memory configurations (paper, section 2.2.1 and table 6)."""

    factors: str = Field(
        "num+size+layer", description=f"what is searched; any of {', '.join(FACTORS)} with '+'"
    )
    ranks: Annotated[tuple[Positive, ...], Field(min_length=1)] = (8, 16, 32, 64, 96)
    max_loras: Positive | None = Field(None, description="largest n; null: the model's number of layers")
    max_rank: Positive | None = Field(
        None, description="largest rank of a layer (r times its share of n); null: the model's layer width"
    )
    scaling: Annotated[float, Field(gt=0)] = Field(1.0, description="alpha / rank of every LoRA; Eq. 1 has 1")
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    defaults: MemoryDefaults = MemoryDefaults()

    @field_validator("factors")
    @classmethod
    def _known_factors(cls, value: str) -> str:
        parts = value.split("+")
        if not all(part in FACTORS for part in parts) or len(set(parts)) != len(parts):
            raise ValueError(f"must be one or more of {', '.join(FACTORS)}, each once, joined by '+'")
        return "+".join(part for part in FACTORS if part in parts)

    @field_validator("ranks")
    @classmethod
    def _increasing(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("must increase, each rank once")
        return value


class SaasSettings(Settings):
    """NUTS for the SAAS-GP; what is null comes from the preset."""

    preset: Literal["default", "paper"] = Field(
        "default", description="paper: AutoPEFT's settings, which the paper follows: 128, 64, 4"
    )
    warmup: Positive | None = None
    samples: Positive | None = None
    thinning: Positive | None = Field(None, description="every n-th posterior sample is kept")


class SearchSettings(Settings):
    """The multi-objective Bayesian optimisation of one user's placement (paper, section 2.2.2)."""

    trials: Positive = Field(200, description="measured configurations per user, the initial ones included")
    initial: Positive = Field(
        20, description="of these, space-filling ones before the model leads; the paper: 100"
    )
    batch: Positive = Field(4, description="proposals from one fit")
    surrogate: str = Field("saas", description="name of a registered surrogate")
    # Kept as `surrogate`, so that a study means and freezes the same whichever key it has.
    sampler: str | None = Field(
        None,
        exclude=True,
        repr=False,
        description="what proposes without a surrogate of ours: random, sobol, ax:fast or ax:quality",
    )
    saas: SaasSettings = SaasSettings()
    outcome: Literal["standardize", "copula"] = Field(
        "standardize", description="how values are scaled for the model; copula: AutoPEFT's normal scores"
    )
    cohort: Positive | None = Field(
        None, description="users per Ray Tune run; null: as many as make 5,000 trials"
    )
    transfer: Literal["none", "seeds", "prior"] = Field(
        "none", description="what later users' searches take from finished ones"
    )
    transfer_users: Positive = Field(8, description="the first users, who run without transfer")

    @model_validator(mode="before")
    @classmethod
    def _one_proposes(cls, values: object) -> object:
        sampler = values.get("sampler") if isinstance(values, dict) else None
        if not isinstance(values, dict) or not isinstance(sampler, str):
            return values
        if (surrogate := values.get("surrogate")) not in (None, sampler):
            raise ValueError(
                f"surrogate is {surrogate!r} and sampler is {sampler!r}, but only one proposes: "
                "remove one of them, or set it to null"
            )
        return values | {"surrogate": sampler, "sampler": None}

    @model_validator(mode="after")
    def _initial_fits(self) -> Self:
        if self.trials < self.initial:
            raise ValueError(f"trials ({self.trials}) is smaller than initial ({self.initial})")
        return self


class ChooseSettings(Settings):
    """Which point of a user's front becomes the user's memory."""

    policy: str = Field("knee", description="knee, best:<objective>, or budget")
    budget: Positive | None = Field(None, description="largest number of trainable parameters, for budget")

    @model_validator(mode="after")
    def _known_policy(self) -> Self:
        known = ["knee", "budget", *(f"best:{name}" for name in OBJECTIVES)]
        if self.policy not in known:
            raise ValueError(f"policy {self.policy!r} is not one of {', '.join(known)}")
        if (self.policy == "budget") != (self.budget is not None):
            raise ValueError("policy 'budget' needs budget, and only that policy takes one")
        return self


class Study(Settings):
    """A whole study: many users, one base model, one budget."""

    name: str
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
    simulation: SimulationSettings | None = Field(None, description="null: real trials")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not NAME_PATTERN.fullmatch(value):
            raise ValueError("must be 1 to 40 of a-z, 0-9, '_' and '-', starting with a letter or digit")
        return value

    @field_validator("objectives")
    @classmethod
    def _distinct(cls, value: tuple[ObjectiveName, ...]) -> tuple[ObjectiveName, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names an objective twice")
        if all(OBJECTIVES[name].exact for name in value):
            measured = " or ".join(name for name, declared in OBJECTIVES.items() if not declared.exact)
            raise ValueError(f"needs a measured objective ({measured}) beside {', '.join(value)}")
        return value

    @model_validator(mode="after")
    def _device_is_asked_for(self) -> Self:
        if self.model.device == "cuda" and self.ray.gpus_per_worker == 0 and self.simulation is None:
            raise ValueError(
                "model.device is cuda, but ray.gpus_per_worker is 0: give workers a GPU (1, or auto), or set "
                "model.device to auto or cpu"
            )
        return self

    @model_validator(mode="after")
    def _policy_has_objective(self) -> Self:
        kind, _, objective = self.choose.policy.partition(":")
        if kind == "best" and objective not in self.objectives:
            raise ValueError(f"choose.policy is {self.choose.policy!r}, but objectives has no {objective!r}")
        return self
