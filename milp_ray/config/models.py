"""The study file as typed, immutable models; defaults are the paper's (section 3.4, table 6).

"The paper" is MiLP, docs/references.md: Zhang 2024. Only shapes and ranges that need no model and
no data are checked here; `milp-ray check` does the rest. Reading YAML is
:mod:`milp_ray.config.loading`; the commented file that `milp-ray init` writes is
:mod:`milp_ray.config.template`.
"""

from __future__ import annotations

import datetime
import re
import string
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from milp_ray.config.objectives import OBJECTIVES
from milp_ray.storage import is_url, url_fault

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
ObjectiveName = Literal["loss", "rouge_l", "chrf", "trainable_params"]  # of objectives.OBJECTIVES
Stage = Literal["inject", "instruct"]

COMMIT_PATTERN = r"[0-9a-f]{40}"
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class Settings(BaseModel):
    """Base of every section: unknown keys, wrong types, NaN and infinity are errors; values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _usable_url(value: str) -> str:
    """A path as it is; a URL if it can be used."""
    if is_url(value) and (fault := url_fault(value)):
        raise ValueError(fault)
    return value


class ModelSettings(Settings):
    """Which base model, and in what number format it stays resident (frozen) on a worker."""

    path: str = Field(min_length=1, description="folder or hub name, as for `from_pretrained`")
    revision: str | None = Field(None, description="hub revision; pin it for runs that must repeat")
    # No float16: without loss scaling its small gradients vanish.
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on a GPU, float32 on a CPU"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    trust_remote_code: bool = Field(
        False,
        description="run Python that the model brings; of a hub model it needs a revision pinned to a commit",
    )
    code_revision: str | None = Field(
        None,
        pattern=f"^{COMMIT_PATTERN}$",
        description="commit of another repository whose code the model names; needs trust_remote_code",
    )

    @model_validator(mode="after")
    def _code_is_pinned(self) -> Self:
        named = HUB_NAME.fullmatch(self.path)  # a folder's code is pinned by the run itself
        if self.trust_remote_code and named and not re.fullmatch(COMMIT_PATTERN, self.revision or ""):
            raise ValueError(
                "trust_remote_code runs the repository's code, so revision must be a commit (40 hex digits); "
                "a folder's path begins with ./ or /"
            )
        if self.code_revision and not self.trust_remote_code:
            raise ValueError("code_revision pins code that only runs with trust_remote_code")
        return self


class SplitSettings(Settings):
    """How samples are divided (paper, section 3.4: 70/10/20)."""

    regime: Literal["per_user", "by_user"] = "per_user"
    train: Fraction = 0.7
    validation: Fraction = 0.1
    test: Fraction = 0.2

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test is {total:g}, and must be 1")
        return self


class DataSettings(Settings):
    """Where the users' texts are, and how much of each user is used."""

    path: str = Field(min_length=1, description="file of user records, or its URL")
    format: str = Field("jsonl", description="name of a registered reader")
    users: Positive | tuple[str, ...] | None = Field(
        None, description="how many users (the first ones), or their ids; null: all"
    )
    alias_key: str | None = Field(
        None,
        min_length=1,
        description="file with the aliases' key (32 bytes, yours alone), for runs that are to have the same "
        "aliases and seeds; null: a new key for each run",
    )
    min_samples: Positive = Field(10, description="a per-user split needs at least this many samples")
    max_history: Positive | None = Field(None, description="newest history texts kept per user; null: all")
    max_samples: Positive | None = Field(None, description="newest samples kept per user; null: all")
    split: SplitSettings = SplitSettings()
    text_rules: Literal[1, 2] = Field(
        2, description="what words and leaks are; 1: in runs that older versions began (docs/data.md)"
    )

    _is_usable = field_validator("path")(_usable_url)


class PromptSettings(Settings):
    """The fixed text phrases of both stages (paper, section 3.1), or the model's own chat template."""

    style: Literal["plain", "chat"] = "plain"
    history: str = "History: {text}"
    instruction: str = "User: {query}\nResponse: {response}"
    context: str = Field("{query}\n{context}", description="how a sample's context joins its query")
    max_length: Annotated[int, Field(ge=16)] = Field(512, description="tokens; longer texts are cut")
    thinking: Literal["template", "off"] = Field(
        "template", description="chat: thinking as the template has it by default, or switched off"
    )
    date: Annotated[datetime.date | None, Field(strict=False)] = Field(
        None, description="chat: what a template that reads the clock gets; null: the day the run begins"
    )
    # How texts become tokens, of which a run keeps the number (run.json); nothing that a study says.
    encoding: Literal[1, 2] = Field(2, exclude=True, repr=False)

    @field_validator("history", "instruction", "context")
    @classmethod
    def _placeholders(cls, value: str, info: object) -> str:
        needed = {"history": ["text"], "instruction": ["query", "response"], "context": ["query", "context"]}
        names = needed[info.field_name]  # type: ignore[attr-defined]
        try:
            found = [name for _, name, _, _ in string.Formatter().parse(value) if name is not None]
        except ValueError as error:
            raise ValueError(f"is not a well-formed phrase: {error}") from None
        if sorted(found) != sorted(names):
            raise ValueError(
                f"needs exactly {', '.join('{' + n + '}' for n in names)}, has {found or 'none'}"
            )
        if "response" in names and not value.endswith("{response}"):
            raise ValueError("must end with {response}: the loss is taken on what follows the prompt")
        return value


class MemoryDefaults(Settings):
    """What a factor is fixed at while it is not searched (paper, table 4)."""

    num: Positive | None = Field(None, description="number of LoRAs; null: one per active layer")
    size: Positive = Field(16, description="rank")
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(None, description="null: all")


class MemorySettings(Settings):
    """The search space of memory configurations (paper, section 2.2.1 and table 6)."""

    factors: str = Field("num+size+layer", description="what is searched; any of num, size, layer with '+'")
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
        known = ("num", "size", "layer")
        if not all(part in known for part in parts) or len(set(parts)) != len(parts):
            raise ValueError("must be one or more of num, size, layer, each once, joined by '+'")
        return "+".join(part for part in known if part in parts)

    @field_validator("ranks")
    @classmethod
    def _increasing(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("must increase, each rank once")
        return value


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


_RAYS_OWN = ("", "cpu", "gpu", "memory", "object_store_memory", "node", "accelerator_type")


class RaySettings(Settings):
    """Where trials run. Nothing here changes a result, so all of it may change when a run is resumed."""

    address: str | None = Field(None, description="null: RAY_ADDRESS if set, else a local Ray for this run")
    workers_per_trial: Positive = Field(1, description="ranks that work on one trial together")
    parallelism: Literal["none", "ddp", "zero1", "zero2", "zero3", "fsdp"] = Field(
        "none", description="how these share a trial; needed with more than one"
    )
    offload: bool = Field(False, description="keep what ZeRO divides in the host's memory")
    group_timeout: Annotated[float, Field(gt=0)] = Field(
        120.0,
        description="seconds without a sign of life, beyond a slice, after which a worker counts as hung",
    )
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="1, a part of one, or 0; auto: 1 where the cluster has GPUs, else 0"
    )
    memory_per_worker: Annotated[float, Field(gt=0)] | None = Field(
        None, description="GiB of the host's memory that a worker may take; null: not bounded, nor asked for"
    )
    accelerator_type: str | None = Field(
        None, min_length=1, description="only nodes with this GPU, as Ray names it: H100, A100-80G, L4, ..."
    )
    custom_resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="what a worker takes of other resources that nodes offer, by their names"
    )
    max_concurrent: Positive | None = Field(None, description="null: as many as the cluster fits")
    wait_for_nodes: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="seconds that an autoscaler, or whoever adds nodes, has to make room for a trial, and in "
        "the final job for all that start together",
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(
        2,
        description="retries of a trial whose worker died; in the final job of a user, since its last state",
    )
    proposers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="actors that compute proposals; 0: a thread of the driver; auto: by CPUs"
    )
    dashboard: bool = Field(False, description="start the dashboard with a local Ray")
    rehearse: bool = Field(
        True,
        description="try a worker's first steps on this machine before Ray starts, where the base is small",
    )

    @model_validator(mode="after")
    def _workers_share(self) -> Self:
        if self.workers_per_trial > 1 and self.parallelism == "none":
            raise ValueError(
                f"workers_per_trial is {self.workers_per_trial}, but parallelism none knows one worker: "
                "choose ddp, zero1, zero2, zero3 or fsdp"
            )
        gpus = 0.0 if self.gpus_per_worker == "auto" else self.gpus_per_worker
        if gpus > 1:
            raise ValueError(
                f"gpus_per_worker is {gpus:g}, but a worker works on one GPU, or a part of it: "
                "for several on one trial set workers_per_trial and parallelism"
            )
        if 0 < gpus < 1 and self.workers_per_trial > 1:
            raise ValueError(
                f"gpus_per_worker is {gpus:g}, but workers of one trial cannot share a GPU "
                "(NCCL refuses it): ask for a whole one each, or set workers_per_trial to 1"
            )
        if self.offload and not self.parallelism.startswith("zero"):
            raise ValueError("offload needs parallelism zero1, zero2 or zero3")
        return self

    @field_validator("custom_resources")
    @classmethod
    def _are_custom(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            if name.lower().partition(":")[0] in _RAYS_OWN:
                raise ValueError(
                    f"{name!r} is Ray's own: use cpus_per_worker, gpus_per_worker, memory_per_worker or "
                    "accelerator_type"
                )
        return value


class StorageSettings(Settings):
    """Where run folders are made."""

    path: str = Field("runs", min_length=1, description="folder or URL; the run is <path>/<study name>")
    readable_by: Literal["owner", "group"] = Field(
        "owner",
        description="who may read a new run's folder; group: its group, too, except alias.key",
    )

    _is_usable = field_validator("path")(_usable_url)


class SimulationSettings(Settings):
    """A dry run: trials that return the values of a synthetic problem, and train nothing."""

    seconds: Annotated[float, Field(ge=0)] = Field(1.0, description="simulated duration of a trial")
    noise: Annotated[float, Field(ge=0)] = Field(
        0.03, description="standard deviation of a measurement, as a share of the possible gain"
    )
    related: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="how alike the users are")
    failures: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="share of trials that fail")


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
