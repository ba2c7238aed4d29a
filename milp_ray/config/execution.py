"""Where and how a study runs: the sections ``ray``, ``storage`` and ``simulation``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from milp_ray.config.settings import Positive, Settings, usable_url

_RAYS_OWN = ("", "cpu", "gpu", "memory", "object_store_memory", "node", "accelerator_type")


class RaySettings(Settings):
    """Where trials run. Nothing here changes a result: a resume may change all of it."""

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

    _is_usable = field_validator("path")(usable_url)


class SimulationSettings(Settings):
    """A dry run: trials that return the values of a synthetic problem, and train nothing."""

    seconds: Annotated[float, Field(ge=0)] = Field(1.0, description="simulated duration of a trial")
    noise: Annotated[float, Field(ge=0)] = Field(
        0.03, description="standard deviation of a measurement, as a share of the possible gain"
    )
    related: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="how alike the users are")
    failures: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="share of trials that fail")
