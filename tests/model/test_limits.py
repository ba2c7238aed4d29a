"""A worker with limited memory: a trial too large fails with its size, a small one still works."""

from __future__ import annotations

import multiprocessing
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from milp_ray.config.models import ModelSettings, OptimizerSettings, RaySettings
from milp_ray.data.records import UserSplit
from milp_ray.errors import ModelError
from milp_ray.memory.placement import Placement
from milp_ray.model.base import load_base
from milp_ray.model.limits import GIB, OutOfMemory, _status, infeasible, limit_memory
from milp_ray.trial.lifecycle import Trial
from tests.trial.common import changed

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="RLIMIT_DATA bounds allocations on Linux only"
)


def bounded(model: str, user: UserSplit, results: Any) -> None:
    """In a process of its own, as the limit stays: a small trial, one too large, the small one."""
    torch.set_num_threads(1)
    study = changed(model=ModelSettings(path=model))
    large = changed(model=study.model, optimizer=OptimizerSettings(learning_rate=1e-2, batch_size=4096))
    long = replace(user, history=user.history * 200, search_cut=len(user.history) * 200)
    base = load_base(study.model)
    found: list[object] = []
    with Trial(base, user, Placement.from_key("1:4"), study, seed=1) as first:
        first.run()
    limit_memory(RaySettings(memory_per_worker=_status("VmRSS") / GIB + 0.1), base.device)
    for owner, setting in ((user, study), (long, large), (user, study)):
        with Trial(base, owner, Placement.from_key("1:4"), setting, seed=1) as trial:
            try:
                measured = trial.run()
                assert measured is not None
                found.append(measured.loss)
            except OutOfMemory as failure:
                found.append(failure.reason)
    results.send(found)  # by no thread: there may be no memory left for another stack


def test_a_trial_over_the_bound_is_infeasible_and_the_next_one_works(
    tiny_models: dict[str, Path], tiny_user: UserSplit
) -> None:
    context = multiprocessing.get_context("spawn")
    results, sent = context.Pipe(duplex=False)
    process = context.Process(target=bounded, args=(str(tiny_models["llama"]), tiny_user, sent))
    process.start()
    assert results.poll(120)
    before, failure, after = results.recv()
    process.join(20)
    assert before == after
    assert "out of memory with" in failure and "trainable parameters (placement 1:4)" in failure


def test_a_bound_below_what_the_base_takes_is_said() -> None:
    with pytest.raises(ModelError, match="more than it may") as refused:
        limit_memory(RaySettings(memory_per_worker=0.01), torch.device("cpu"))
    assert "raise ray.memory_per_worker" in str(refused.value)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A GPU of 80 GiB as PyTorch shows it; the limits set on it, and what the process has taken."""
    found: dict[str, float] = {"held": 13 * GIB}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * GIB)
    )
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: found["held"])

    def bound(fraction: float, device: torch.device) -> None:
        assert device.index is not None, "PyTorch refuses a device without its number"
        found["fraction"] = fraction

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", bound)
    return found


def test_workers_that_share_a_gpu_get_their_part_of_it(card: dict[str, float]) -> None:
    limit_memory(RaySettings(gpus_per_worker=0.25), torch.device("cuda", 0))
    assert card["fraction"] == pytest.approx(19 / 80)
    card["held"] = 19.5 * GIB
    with pytest.raises(ModelError, match="its share is 19") as refused:
        limit_memory(RaySettings(gpus_per_worker=0.25), torch.device("cuda", 0))
    assert "ray.gpus_per_worker" in str(refused.value)
    limit_memory(RaySettings(gpus_per_worker=1), torch.device("cuda", 0))


def test_what_failed_is_gone_before_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    found: list[bool] = []

    def step() -> None:
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("torch.cuda.empty_cache", lambda: found.append(held[0]() is None))
    with pytest.raises(OutOfMemory, match="too large"), infeasible("too large"):
        step()
    assert found == [True]
