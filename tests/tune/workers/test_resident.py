"""What a worker's set-up says when it fails, and where ranks meet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from milp_ray.config.models import Study
from milp_ray.errors import ClusterError, ModelError
from milp_ray.model import base as base_module
from milp_ray.model.parallel import group as group_module
from milp_ray.model.parallel.rendezvous import Rendezvous
from milp_ray.trial.records import TrialReport, TrialState
from milp_ray.tune.search.group_trial import GroupTrial
from milp_ray.tune.workers import resident
from milp_ray.tune.workers.trial_runner import WorkerSetupError
from milp_ray.tune.workers.worker_group import GroupFailed


def study(device: str = "cpu") -> Study:
    return Study.model_validate(
        {"name": "s", "model": {"path": "m", "device": device}, "data": {"path": "d"}, "ray": {}}
    )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A run folder that this machine sees, at an address that no interface has."""
    monkeypatch.setattr(resident.ray.util, "get_node_ip_address", lambda: "192.0.2.99")
    (tmp_path / "run.json").touch()
    return tmp_path


def fails(*words: object, **more: object) -> Any:
    raise RuntimeError("Connection closed by peer [10.0.0.7]:4242")


def test_a_rank_that_lost_the_others_is_no_fault_of_the_cluster_yet(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever started it replaces the lost one; an error of our own would end the whole run."""
    monkeypatch.setattr(group_module, "Ranks", fails)
    with pytest.raises(RuntimeError, match="closed by peer"):
        resident.resident_base(study(), here, 1, Rendezvous("192.0.2.99:1", 0, 2))
    monkeypatch.setattr(base_module, "load_base", fails)
    with pytest.raises(ClusterError, match="could not be set up: RuntimeError at"):
        resident.resident_base(study(), here, 1)


def test_a_worker_that_cannot_use_its_gpu_does_not_work_on_the_cpu(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ClusterError, match="cannot use it") as refused:
        resident.resident_base(study("cuda"), here, 1)
    assert "192.0.2.99" in str(refused.value)


@pytest.mark.parametrize(
    ("address", "gloo", "nccl"),
    [("10.0.0.7", "eth1", "eth1"), ("127.0.0.1", "lo", None), ("10.9.9.9", None, None)],
)
def test_ranks_meet_at_the_address_that_ray_knows(
    monkeypatch: pytest.MonkeyPatch, address: str, gloo: str | None, nccl: str | None
) -> None:
    """Not at 127.0.1.1, which the host's name often stands for."""
    addresses = {"lo": ["127.0.0.1", "::1"], "cni0": ["10.244.0.1"], "eth1": ["fe80::1%eth1", "10.0.0.7"]}
    interfaces = {name: [SimpleNamespace(address=a) for a in found] for name, found in addresses.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)
    resident.meet_at(address)
    assert os.environ.get("GLOO_SOCKET_IFNAME") == gloo and os.environ.get("NCCL_SOCKET_IFNAME") == nccl
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    resident.meet_at("10.0.0.7")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0", "what somebody has set is theirs"


class Group:
    """That does not start."""

    alive = False

    def __init__(self, failure: Exception) -> None:
        self.failure = failure

    def start(self) -> None:
        raise self.failure


@pytest.mark.parametrize(
    ("failure", "node", "fact"),
    [
        (GroupFailed("1 of 2 workers have not started in time"), "", "have not started in time"),
        (
            WorkerSetupError(ClusterError("a worker cannot use its GPU"), "10.0.0.7"),
            "10.0.0.7",
            "cannot use its GPU",
        ),
    ],
)
def test_a_group_that_does_not_come_up_is_no_fault_of_its_trial(
    failure: Exception, node: str, fact: str
) -> None:
    """Told as failed, trial after trial would be lost for as long as a node is away."""
    trial = GroupTrial.__new__(GroupTrial)
    trial._group, trial._setup_error = Group(failure), None
    found = TrialReport.from_result(trial.step())
    assert found.state is TrialState.LOST and found.node == node and fact in str(found.error)
    with pytest.raises(TypeError, match="exit_actor"):  # no actor here that could end
        trial.step()


def test_a_group_whose_base_fails_any_worker_ends_the_run() -> None:
    trial = GroupTrial.__new__(GroupTrial)
    trial._group, trial._setup_error = Group(WorkerSetupError(ModelError("no weights"), "10.0.0.7")), None
    found = TrialReport.from_result(trial.step())
    assert found.is_over and "no weights" in str(found.error)


HANGS = """
import sys, time
from pathlib import Path
from milp_ray.config.models import Study
from milp_ray.model import base
from milp_ray.tune.workers import resident

def stuck(*_):
    secret = "zanzibarcanary"
    time.sleep(160)

base.load_base, resident.LOADING_SECONDS = stuck, 0.5
study = {"name": "s", "model": {"path": "m", "device": "cpu"}, "data": {"path": "d"}, "ray": {}}
resident.resident_base(Study.model_validate(study), Path(sys.argv[1]), 1)
"""


def test_a_base_that_loads_for_ever_ends_its_worker_which_says_where(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    found = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path)], capture_output=True, text=True, timeout=150, check=False
    )
    assert found.returncode == 1 and "Timeout" in found.stderr and " in stuck" in found.stderr
    assert "zanzibarcanary" not in found.stderr
