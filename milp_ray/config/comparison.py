"""The comparison file as typed, immutable models: data sets x base models x methods x seeds.

It has a study's sections, which hold for every method alike, but several data sets and models. Each
combination of a data set, a model and a seed is a :class:`~milp_ray.config.models.Study` of its
own. Which methods there are is :mod:`milp_ray.evaluation.baselines`'s part.
"""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from milp_ray.config.execution import RaySettings, StorageSettings
from milp_ray.config.inputs import DataSettings, ModelSettings, PromptSettings
from milp_ray.config.judging import JudgeSettings
from milp_ray.config.models import ObjectiveName, Study, StudyName
from milp_ray.config.search import ChooseSettings, MemorySettings, SearchSettings
from milp_ray.config.settings import Positive, Settings, usable_url
from milp_ray.config.training import FinalSettings, OptimizerSettings, TrialSettings


def _part_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]{0,11}", value):
        raise ValueError("must be 1 to 12 of a-z, 0-9 and '_', starting with a letter or digit")
    return value


# Of data sets and models: the name of a study is made of both, and has 40 characters at most.
PartName = Annotated[str, AfterValidator(_part_name)]


class ComparedData(DataSettings):
    """A data set of a comparison: the users that methods are compared on, and background users."""

    background: str | None = Field(
        None, min_length=1, description="file of other users, or its URL, for what is trained across users"
    )
    background_users: Positive | None = Field(None, description="how many of them; null: all")

    _is_usable_too = field_validator("background")(lambda value: value and usable_url(value))

    def data(self, *, background: bool = False) -> DataSettings:
        """A study's ``data`` section, of the compared users or of the background users."""
        values = self.model_dump(exclude={"background", "background_users"})
        if background:
            values |= {"path": self.background, "users": self.background_users}
        return DataSettings.model_validate(values)


class MethodOptions(Settings):
    """What may be chosen of the methods beside a study's sections, for all of them alike."""

    rate_factors: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = Field(
        (0.3, 1.0, 3.0),
        description="times optimizer.learning_rate, what a trained method chooses from",
    )
    rate_users: Positive = Field(8, description="background users whose validation samples choose the rate")
    background_samples: Positive = Field(
        1024, description="of all background users together, the most that are trained on"
    )
    retrieved: Positive = Field(4, description="texts that are retrieved for a prompt")
    encoder: str | None = Field(
        None, min_length=1, description="folder of rag_dense's encoder; null: that of an installed package"
    )
    max_prompt_tokens: Positive | None = Field(
        None, description="of a prompt that holds texts; null: as many as the base takes"
    )
    soft_tokens: Positive = Field(8, description="of a user's embedding (uelp)")
    random_trials: Positive | None = Field(
        None, description="placements that random_lora tries; null: search.trials"
    )


class Comparison(Settings):
    """A whole comparison; the sections are those of a study."""

    name: StudyName
    datasets: Annotated[dict[PartName, ComparedData], Field(min_length=1)]
    models: Annotated[dict[PartName, ModelSettings], Field(min_length=1)]
    methods: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=10_000)], ...], Field(min_length=1)] = (0,)
    alias_key: str | None = Field(
        None, min_length=1, description="file with the aliases' key, as data.alias_key of a study"
    )
    options: MethodOptions = MethodOptions()
    judge: JudgeSettings | None = Field(None, description="who scores responses; null: no win rates")
    judged_over: str = Field("tplp", description="the method that win rates are over")
    cases: int = Field(
        0, ge=0, description="users of each data set whose responses are shown as text, in pages; 0: no page"
    )
    predictions: bool = Field(
        False, description="write responses in the form of a data set's own evaluation, where it has one"
    )
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

    @field_validator("methods", "seeds")
    @classmethod
    def _distinct(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names one of them twice")
        return value

    @field_validator("datasets")
    @classmethod
    def _one_background(cls, value: dict[str, ComparedData]) -> dict[str, ComparedData]:
        both = [name for name, data in value.items() if data.split.regime == "by_user" and data.background]
        if both:
            raise ValueError(
                f"{', '.join(both)}: no background where users are divided (split.regime: by_user): "
                "the train and validation users of the file are the background"
            )
        return value

    @field_validator("datasets")
    @classmethod
    def _one_key(cls, value: dict[str, ComparedData]) -> dict[str, ComparedData]:
        if any(data.alias_key is not None for data in value.values()):
            raise ValueError("a comparison has one key for all: give it as alias_key, beside datasets")
        return value

    @model_validator(mode="after")
    def _judged_over_a_method(self) -> Self:
        if self.judge is not None and self.judged_over not in self.methods:
            raise ValueError(
                f"judged_over is {self.judged_over!r}, which is none of methods: win rates are over a method "
                "of the comparison"
            )
        return self

    @model_validator(mode="after")
    def _is_a_study(self) -> Self:
        """What a study refuses, a comparison refuses before anything runs."""
        try:
            self.study(next(iter(self.datasets)), next(iter(self.models)), self.seeds[0])
        except ValidationError as error:
            raise ValueError("; ".join(_message(found["msg"]) for found in error.errors())) from None
        return self

    @property
    def data_sections(self) -> dict[str, DataSettings]:
        """All that is read of users, background included, by its place in the file."""
        found = {f"datasets.{name}": data.data() for name, data in self.datasets.items()}
        for name, data in self.datasets.items():
            if data.background is not None:
                found[f"datasets.{name}.background"] = data.data(background=True)
        return found

    @property
    def model_sections(self) -> dict[str, ModelSettings]:
        """The base models, by their places in the file."""
        return {f"models.{name}": model for name, model in self.models.items()}

    @property
    def key_settings(self) -> dict[str, str]:
        """The file with the aliases' key, by its place in the file, if one is named."""
        return {"alias_key": self.alias_key} if self.alias_key is not None else {}

    def study(self, dataset: str, model: str, seed: int) -> Study:
        """The study of one combination; its name is made of the three."""
        sections = {name: getattr(self, name) for name in _SECTIONS}
        data = self.datasets[dataset].data()
        if self.alias_key is not None:
            data = data.model_copy(update={"alias_key": self.alias_key})
        return Study(
            name=f"{dataset}-{model}-s{seed}",
            seed=seed,
            model=self.models[model],
            data=data,
            **sections,
        )


_SECTIONS = (
    "prompts",
    "memory",
    "objectives",
    "optimizer",
    "trial",
    "search",
    "choose",
    "final",
    "ray",
    "storage",
)


def _message(text: str) -> str:
    return text.removeprefix("Value error, ")
