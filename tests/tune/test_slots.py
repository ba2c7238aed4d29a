"""Room for a trial: waited for where nodes may come, refused at once where they may not."""

from __future__ import annotations

from typing import Any

import pytest

from milp_ray.config.models import Study
from milp_ray.errors import ClusterError
from milp_ray.tune import slots as module
from milp_ray.tune.slots import slots


class Cluster:
    """A cluster whose autoscaler brings a node some time after it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, node: dict[str, float], delay: float) -> None:
        self.asked: list[list[dict[str, float]]] = []
        self.now = self.slept = 0.0
        self._node, self._delay = node, delay
        monkeypatch.setattr(module.ray, "nodes", self.nodes)
        monkeypatch.setattr(module, "request_resources", lambda bundles: self.asked.append(bundles))
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module.time, "sleep", self.sleep)

    def nodes(self) -> list[dict[str, Any]]:
        head = {"Alive": True, "Resources": {"memory": 1e9}}
        there = self.asked and self.now >= self._delay
        return [head, *([{"Alive": True, "Resources": self._node}] if there else [])]

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def study(**settings: object) -> Study:
    raw = {"name": "s", "model": {"path": "m"}, "data": {"path": "d"}, "ray": settings}
    return Study.model_validate(raw)


def test_without_time_a_cluster_without_room_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, {"CPU": 4.0}, 0.0)
    with pytest.raises(ClusterError, match=r"ray\.wait_for_nodes=900"):
        slots(study())
    assert cluster.now == 0 and not cluster.asked


def test_an_autoscaler_is_asked_waited_for_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, {"CPU": 8.0, "GPU": 2.0}, 60.0)
    found = slots(study(wait_for_nodes=600.0, gpus_per_worker=1.0, max_concurrent=16))
    assert 60 <= cluster.now < 70
    # 16 may run at once: trials beyond the first two wait for room, and bring more nodes.
    assert (found.cpus, found.gpus, found.count) == (1.0, 1.0, 16)
    asked = [{"CPU": 1.0, "GPU": 1.0}] * 16
    # Again and again: the cluster has one such request, which others overwrite.
    assert cluster.asked == [asked] * 4 + [[]]


def test_auto_takes_the_gpus_that_came(monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster(monkeypatch, {"CPU": 8.0, "GPU": 2.0}, 10.0)
    found = slots(study(wait_for_nodes=600.0))
    assert (found.gpus, found.count) == (1.0, 2)


def test_a_stop_ends_waiting_and_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, said = Cluster(monkeypatch, {"CPU": 8.0}, 1e9), list[str]()
    with pytest.raises(KeyboardInterrupt):
        slots(study(wait_for_nodes=900.0), lambda: cluster.now >= 7, said.append)
    assert 7 <= cluster.now < 8 and cluster.asked[-1] == []
    assert len(said) == 1 and "waiting up to 900 s for nodes" in said[0]


def test_waiting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, {"CPU": 8.0}, 1e9)
    with pytest.raises(ClusterError, match="no node has that"):
        slots(study(wait_for_nodes=30.0))
    assert 30 <= cluster.now < 40 and cluster.asked[-1] == []
