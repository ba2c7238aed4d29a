"""What a study searches and selects: the sections ``memory``, ``search`` and ``choose``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from milp_ray.config.factors import FACTORS
from milp_ray.config.objectives import OBJECTIVES
from milp_ray.config.settings import Positive, Settings


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


class PointToEvaluate(Settings):
    """A configuration that is measured first; what it leaves out is that of the defaults."""

    num: Positive | None = Field(None, description="number of LoRAs; null: one per active layer")
    size: Positive | None = Field(None, description="rank; null: memory.defaults.size")
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...] | None, Field(strict=False)] = Field(
        None, description="null: memory.defaults.layers"
    )


Unit = Literal["user", "population"]


class SearchSettings(Settings):
    """The multi-objective Bayesian optimisation of a placement (paper, section 2.2.2)."""

    trials: Positive = Field(200, description="measured configurations per user, the initial ones included")
    initial: Positive = Field(
        20, description="of these, space-filling ones before the model leads; the paper: 100"
    )
    # Not strict, here and below: after `_one_proposes` a JSON list is a list, and no tuple.
    points_to_evaluate: tuple[PointToEvaluate, ...] = Field(
        (),
        strict=False,
        description="configurations measured first, of the initial ones; {}: memory.defaults",
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
    unit: Unit | Literal["auto"] = Field(
        "auto",
        description="whose placement is searched: each user's, or one for the population; auto: the "
        "population's where users are divided (data.split.regime by_user), else each user's",
    )
    users_per_trial: Positive = Field(
        8, description="of a population: users that each trial injects for; it measures their mean"
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

    @model_validator(mode="after")
    def _points_fit(self) -> Self:
        if len(self.points_to_evaluate) > self.initial:
            raise ValueError(
                f"points_to_evaluate has {len(self.points_to_evaluate)}, which are of the initial ones, and "
                f"initial is {self.initial}: raise it, or remove points"
            )
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
