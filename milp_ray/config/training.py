"""What a study trains: the sections ``optimizer``, ``trial`` and ``final``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from milp_ray.config.settings import Positive, Settings

Stage = Literal["inject", "instruct"]


class OptimizerSettings(Settings):
    """AdamW as the paper sets it (section 3.4)."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="share of the steps, linear")
    batch_size: Positive = Field(8, description="texts per step, divided over a trial's workers")
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


class TrialSettings(Settings):
    """One trial: what is trained before the objectives are measured on validation samples."""

    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] = ("inject",)
    epochs: Positive = Field(3, description="passes over the history in stage 1")
    instruct_epochs: Positive = Field(1, description="passes over the train samples, in stage 2")
    max_new_tokens: Positive = Field(64, description="longest generated response, for ROUGE-L")
    eval_batch_size: Positive = Field(16, description="samples measured at once")
    slice_seconds: Annotated[float, Field(gt=0)] = Field(
        2.0, description="a trial looks up this often whether it should stop"
    )
    save_adapters: bool = Field(
        True, description="keep the adapters of the trials on each user's front; the final job needs none"
    )

    @field_validator("stages")
    @classmethod
    def _order(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        if value not in (("inject",), ("inject", "instruct")):
            raise ValueError("must be [inject] or [inject, instruct]")
        return value


class FinalSettings(Settings):
    """The final job: the chosen configuration, injected and instruction-tuned, tested once."""

    automatic: bool = Field(True, description="follow the search at once; false: milp-ray final RUN")
    checkpoint_steps: Annotated[int, Field(ge=0)] = Field(
        200, description="steps after which a training's state is kept; 0: only when it is stopped"
    )
    epochs: Positive = Field(3, description="passes over the history in stage 1")
    instruct_epochs: Positive = Field(3, description="passes over the samples in stage 2")
    train_on: Literal["train", "train+validation"] = "train+validation"
    optimizer: OptimizerSettings | None = Field(None, description="null: the study's own")
