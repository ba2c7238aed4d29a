"""Room for a trial: waited for where nodes may come, refused at once where they may not."""

from __future__ import annotations

from typing import Any

import pytest

from milp_ray.config.models import Study
from milp_ray.errors import ClusterError
from milp_ray.tune.cluster import resources as module
from milp_ray.tune.cluster.resources import trial_resources


class Cluster:
    """A cluster whose autoscaler brings nodes, each some time after it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, node: dict[str, float], *delays: float) -> None:
        self.asked: list[list[dict[str, float]]] = []
        self.now = self.slept = 0.0
        self._node, self._delays = node, delays
        monkeypatch.setattr(module.ray, "nodes", self.nodes)
        monkeypatch.setattr(module, "request_resources", lambda bundles: self.asked.append(bundles))
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module.time, "sleep", self.sleep)

    def nodes(self) -> list[dict[str, Any]]:
        head = {"Alive": True, "Resources": {"memory": 1e9}}
        there = sum(bool(self.asked) and self.now >= delay for delay in self._delays)
        return [head, *([{"Alive": True, "Resources": self._node}] * there)]

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def study(device: str = "auto", **settings: object) -> Study:
    raw = {"name": "s", "model": {"path": "m", "device": device}, "data": {"path": "d"}, "ray": settings}
    return Study.model_validate(raw)


def test_without_time_a_cluster_without_room_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, {"CPU": 4.0}, 0.0)
    with pytest.raises(ClusterError, match=r"ray\.wait_for_nodes=900"):
        trial_resources(study())
    assert cluster.now == 0 and not cluster.asked


def test_an_autoscaler_is_asked_waited_for_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, {"CPU": 8.0, "GPU": 2.0}, 60.0)
    found = trial_resources(study(wait_for_nodes=600.0, gpus_per_worker=1.0, max_concurrent=16))
    assert 60 <= cluster.now < 70
    # 16 may run at once: trials beyond the first two wait for room, and bring more nodes.
    assert (found.cpus_per_worker, found.gpus_per_worker, found.concurrent) == (1.0, 1.0, 16)
    asked = [{"CPU": 1.0, "GPU": 1.0}] * 16
    # Again and again: the cluster has one such request, which others overwrite.
    assert cluster.asked == [asked] * 4 + [[]]


def test_auto_takes_the_gpus_that_came(monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster(monkeypatch, {"CPU": 8.0, "GPU": 2.0}, 10.0)
    found = trial_resources(study(wait_for_nodes=600.0))
    assert (found.gpus_per_worker, found.concurrent) == (1.0, 2)


def test_what_starts_together_is_waited_for_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, said = Cluster(monkeypatch, {"CPU": 8.0, "GPU": 2.0}, 60.0, 200.0), list[str]()
    settings = study(wait_for_nodes=600.0, gpus_per_worker=1.0, max_concurrent=16)
    assert trial_resources(settings, notify=said.append, together=4).concurrent == 4
    assert 200 <= cluster.now < 210 and len(said) == 1
    # Neither more than there are users, nor fewer than may run.
    assert cluster.asked[0] == [{"CPU": 1.0, "GPU": 1.0}] * 4 and cluster.asked[-1] == []
    assert trial_resources(settings, together=3).concurrent == 3


def test_what_starts_together_takes_what_came_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, said = Cluster(monkeypatch, {"CPU": 8.0, "GPU": 2.0}, 10.0, 1e9), list[str]()
    groups = {"workers_per_trial": 2, "parallelism": "zero3"}
    settings = study(wait_for_nodes=120.0, max_concurrent=8, **groups)
    assert trial_resources(settings, notify=said.append).concurrent == 8, (
        "the search's trials each wait for room"
    )
    found = trial_resources(settings, notify=said.append, together=8)
    assert (found.concurrent, found.workers_per_trial, found.gpus_per_worker) == (1, 2, 1.0)
    assert 130 <= cluster.now < 140
    assert said[1:] == ["waiting up to 120 s for nodes: there is room for 1 of 8 that are to start together"]
    assert cluster.asked[-2] == [{"CPU": 1.0, "GPU": 1.0}] * 16, "auto asks for what it found"


def test_without_time_what_starts_together_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, {"CPU": 3.0}, 0.0)
    cluster.asked.append([])
    assert trial_resources(study(max_concurrent=8), together=5).concurrent == 3 and cluster.now == 0
    assert trial_resources(study(), together=2).concurrent == 2
    assert trial_resources(study(max_concurrent=1), together=2).concurrent == 1


def test_a_stop_ends_waiting_and_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, said = Cluster(monkeypatch, {"CPU": 8.0}, 1e9), list[str]()
    with pytest.raises(KeyboardInterrupt):
        trial_resources(study(wait_for_nodes=900.0), lambda: cluster.now >= 7, said.append)
    assert 7 <= cluster.now < 8 and cluster.asked[-1] == []
    assert len(said) == 1 and "waiting up to 900 s for nodes" in said[0]


def test_waiting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, {"CPU": 8.0}, 1e9)
    with pytest.raises(ClusterError, match="no node has that"):
        trial_resources(study(wait_for_nodes=30.0))
    assert 30 <= cluster.now < 40 and cluster.asked[-1] == []


def test_a_kind_of_gpu_and_other_resources_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"CPU": 8.0, "GPU": 4.0, "accelerator_type:H100": 1.0, "licence": 3.0}
    cluster = Cluster(monkeypatch, node, 60.0)
    wanted = {"accelerator_type": "H100", "custom_resources": {"licence": 1.0}}
    found = trial_resources(study(wait_for_nodes=600.0, **wanted))
    assert found.per_worker == {"CPU": 1.0, "GPU": 1.0, "accelerator_type:H100": 0.001, "licence": 1.0}
    assert cluster.asked[0] == [found.per_worker], "an autoscaler is told which GPU, with none there yet"
    assert trial_resources(study(**wanted)).concurrent == 3, "as many as there are licences"
    assert trial_resources(study(**wanted), together=2).concurrent == 2


def test_a_kind_of_gpu_that_is_not_there_is_named_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = {"CPU": 8.0, "GPU": 4.0, "accelerator_type:A10G": 1.0}
    Cluster(monkeypatch, node, 0.0).asked.append([])
    with pytest.raises(ClusterError) as refused:
        trial_resources(study(accelerator_type="H100", custom_resources={"licence": 2.0}))
    problem = refused.value.problems[0]
    assert problem.fact == "a worker asks for 1 CPUs, 1 GPUs (H100) and 2 licence, and no node has that"
    assert problem.expected == "at most 8 CPUs, 4 GPUs and 0 licence per worker; GPUs there: A10G"
    assert "ray.accelerator_type or ray.custom_resources" in problem.remedy


def test_a_gpu_by_name_is_not_replaced_by_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, {"CPU": 8.0}, 0.0)
    cluster.asked.append([])
    assert trial_resources(study()).gpus_per_worker == 0, "auto falls back"
    with pytest.raises(ClusterError) as refused:
        trial_resources(study("cuda"))
    problem = refused.value.problems[0]
    assert str(problem).startswith("model.device: it is cuda, and no node has a GPU") and cluster.now == 0
    assert "ray.wait_for_nodes" in problem.remedy and "auto or cpu" in problem.remedy


def test_a_gpu_by_name_is_asked_of_an_autoscaler(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, {"CPU": 8.0, "GPU": 2.0}, 60.0)
    assert trial_resources(study("cuda", wait_for_nodes=600.0)).gpus_per_worker == 1
    assert cluster.asked[0] == [{"CPU": 1.0, "GPU": 1.0}]


@pytest.mark.parametrize("name", ["GPU", "memory", "accelerator_type:H100", "node:10.0.0.1", ""])
def test_resources_of_rays_own_have_settings_of_their_own(name: str) -> None:
    with pytest.raises(ValueError, match="Ray's own"):
        study(custom_resources={name: 1.0})


@pytest.mark.parametrize(("share", "count"), [(0.5, 16), (0.4, 16), (0.3, 24), (0.6, 8), (1.0, 8)])
def test_parts_of_gpus_are_counted_gpu_by_gpu(
    monkeypatch: pytest.MonkeyPatch, share: float, count: int
) -> None:
    """Ray gives a worker a part of one GPU: what is left of two makes no third."""
    monkeypatch.setattr(module, "_nodes", lambda: [{"CPU": 64.0, "GPU": 8.0}])
    assert trial_resources(study(gpus_per_worker=share)).concurrent == count
