"""A rank of the final job beside its coordinator, in this process: no Ray, a tiny model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from milp_ray.config.models import FinalSettings, RaySettings
from milp_ray.data.records import UserSplit
from milp_ray.errors import ClusterError, MilpRayError, ModelError
from milp_ray.evaluation import compare
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel
from milp_ray.tune.cluster.processes import WorkerProcess
from milp_ray.tune.final import worker as final_worker
from milp_ray.tune.final.coordinator import Coordinator, FinalSpec
from milp_ray.tune.final.worker import FinalLoop, GroupsConfig, KillRanks, RankAssignment
from tests.trial.common import STUDY

PLACED = {alias: Placement.from_key("1:4") for alias in ("u1", "u2")}


class Handle:
    """Calls an object as an actor is called; the answer is there at once."""

    def __init__(self, served: object) -> None:
        self._served = served

    def __getattr__(self, name: str) -> Any:
        return type("Method", (), {"remote": staticmethod(getattr(self._served, name))})


class Workers:
    """What Ray Train gives a backend: workers by rank, here all in this process."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def execute_single_async(self, rank: int, work: Callable[..., object], *values: object) -> object:
        return work(*values)


@pytest.fixture
def coordinator(
    tiny_bases: dict[str, BaseModel], tiny_user: UserSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Coordinator:
    study = STUDY.model_copy(
        update={
            "final": FinalSettings(epochs=1, instruct_epochs=1, checkpoint_steps=2),
            "ray": RaySettings(max_failures=0),
        }
    )
    monkeypatch.setattr(final_worker.ray, "get", lambda found: found)
    monkeypatch.setattr(final_worker, "this_process", lambda: WorkerProcess("node", 1))
    monkeypatch.setattr(final_worker, "host_rendezvous", lambda one_node: f"127.0.0.1:{int(one_node)}")
    monkeypatch.setattr(final_worker, "resident_base", lambda *_: tiny_bases["llama"])
    monkeypatch.setattr(final_worker, "_ASSIGNED", [])
    return Coordinator(
        FinalSpec(
            study, {alias: dataclasses.replace(tiny_user, alias=alias) for alias in PLACED}, PLACED, tmp_path
        ),
        0,
    )  # type: ignore[arg-type]


def test_out_of_memory_in_a_test_is_of_that_user_alone(
    coordinator: Coordinator,
    tiny_bases: dict[str, BaseModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, calls = tiny_bases["llama"], iter(range(9))
    measure_responses = compare.measure_responses

    def short_of_memory(*values: Any) -> Any:
        if next(calls) == 1:  # the first user's own memory sits on the base
            assert base.attached is not None
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return measure_responses(*values)

    monkeypatch.setattr(compare, "measure_responses", short_of_memory)
    config = GroupsConfig(size=1, coordinator=Handle(coordinator))
    config.backend_cls().on_start(Workers(1), config)
    FinalLoop(Handle(coordinator), 1.0)()
    events, _, fatal = coordinator.update()
    assert fatal is None and base.attached is None
    assert [(event.step, event.alias, event.reason) for event in events] == [
        ("train", "u1", ""),
        ("train", "u2", ""),
        ("test", "u1", "out of memory in the test"),
        ("test", "u2", ""),
    ]
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["u2.json"]
    assert coordinator.progress() > len(events), "states that were kept are told as well"


def test_lost_ranks_are_told_as_ray_train_counts_them(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[WorkerProcess] = []
    monkeypatch.setattr(final_worker, "end", ended.extend)
    config = GroupsConfig(size=2, coordinator=Handle(coordinator))
    config.backend_cls().on_start(Workers(5), config)
    (last,) = final_worker._ASSIGNED
    assert last == RankAssignment(1, 1, 2, "127.0.0.1:1"), "the fifth rank fills no group"
    for rank in range(4):
        coordinator.start(rank // 2, rank % 2, WorkerProcess("node", rank))
    for group in range(2):
        coordinator.next(group)
    KillRanks(Handle(coordinator)).after_exception(None, {2: RuntimeError("gone")})
    assert ended == [WorkerProcess("node", rank) for rank in range(4)]
    config.backend_cls().on_start(Workers(2), config)
    assert [event.alias for event in coordinator.update().results] == ["u2"]


@pytest.mark.parametrize(
    ("error", "again"), [(ClusterError("a GPU is full"), True), (ModelError("no"), False)]
)
def test_after_a_fault_that_may_pass_a_rank_has_all_started_again(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, error: MilpRayError, again: bool
) -> None:
    def refuse(*_: object) -> BaseModel:
        raise error

    monkeypatch.setattr(final_worker, "resident_base", refuse)
    config = GroupsConfig(size=1, coordinator=Handle(coordinator))
    config.backend_cls().on_start(Workers(1), config)
    with pytest.raises(RuntimeError, match="Error at") if again else contextlib.nullcontext():
        FinalLoop(Handle(coordinator), 1.0)()
    assert coordinator.stop_requested() is not again


def test_a_stop_ends_the_pause_before_the_next_start(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            coordinator.stop()

    monkeypatch.setattr(final_worker.time, "sleep", sleep)
    monkeypatch.setattr(final_worker.time, "monotonic", lambda: sum(slept))
    monkeypatch.setattr(coordinator, "begin", lambda size: 4.0)
    config = GroupsConfig(size=1, coordinator=Handle(coordinator))
    config.backend_cls().on_start(Workers(1), config)
    assert len(slept) == 2 and not final_worker._ASSIGNED, "nobody loads a base for nothing"
    FinalLoop(Handle(coordinator), 1.0)()
