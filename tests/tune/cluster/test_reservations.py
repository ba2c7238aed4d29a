"""Reservations: as many groups as Ray has room for, or a wait. Real ones: ../final/test_run.py."""

from __future__ import annotations

from typing import Any

import pytest

from milp_ray.errors import ClusterError
from milp_ray.tune.cluster import reservations as module
from milp_ray.tune.cluster import resources
from milp_ray.tune.cluster.reservations import reserve
from milp_ray.tune.cluster.resources import TrialResources

WANTED = TrialResources({"CPU": 2.0, "GPU": 1.0}, 4, 2)


class Ray:
    """A cluster on which room for a group comes free at these seconds; first come, first served."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *free_at: float) -> None:
        self.now = 0.0
        self.asked: list[tuple[int, list[dict[str, float]]]] = []
        self.removed: list[Any] = []
        self._free_at = free_at
        monkeypatch.setattr(module, "placement_group", self.ask)
        monkeypatch.setattr(module, "placement_group_table", self.table)
        monkeypatch.setattr(module, "remove_placement_group", self.removed.append)
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module.time, "sleep", self.sleep)
        monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 8.0})
        monkeypatch.setattr(resources.ray, "available_resources", self.available)

    def ask(self, bundles: list[dict[str, float]], strategy: str) -> Any:
        self.asked.append((len(self.asked), bundles))
        return self.asked[-1]

    def table(self, group: tuple[int, object]) -> dict[str, str]:
        return {"state": "CREATED" if group[0] < self._there() else "PENDING"}

    def available(self) -> dict[str, float]:
        return {"CPU": 4.0, "GPU": 4.0 - 2 * self._there()}

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def _there(self) -> int:
        return sum(self.now >= at for at in self._free_at)


def test_an_idle_cluster_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, said = Ray(monkeypatch, 0, 0, 0, 0), list[str]()
    reservation = reserve(WANTED, lambda: False, said.append)
    assert reservation is not None and reservation.resources == WANTED
    assert ray.now == 0 and not said and not ray.removed
    assert ray.asked[0][1] == [{"CPU": 2.0, "GPU": 1.0}] * 2
    reservation.close()
    assert ray.removed == ray.asked


def test_room_that_comes_bit_by_bit_is_all_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a search held that has just ended is not yet given back."""
    Ray(monkeypatch, 1.5, 2, 4.5, 6)
    reservation = reserve(WANTED, lambda: False, pytest.fail)
    assert reservation is not None and reservation.resources.concurrent == 4


def test_where_others_hold_a_part_fewer_groups_start(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, said = Ray(monkeypatch, 0, 1, 99), list[str]()
    reservation = reserve(WANTED, lambda: False, said.append)
    assert reservation is not None and reservation.resources.concurrent == 2 and ray.removed == ray.asked[2:]
    assert reservation.placement_groups == ray.asked[:2] and ray.now < 10
    (told,) = said  # of 12 CPUs and 8 GPUs that are not free, 8 and 4 are ours
    assert told == "room for 2 of 4 groups of workers: others hold 4 CPUs and 4 GPUs of 16 CPUs and 8 GPUs"


def test_where_others_hold_all_it_is_waited_for_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, said, checks = Ray(monkeypatch, 7200, 7201, 7202, 7203), list[str](), list[float]()
    reservation = reserve(WANTED, lambda: False, said.append, lambda: checks.append(ray.now))
    assert reservation is not None and reservation.resources.concurrent == 4 and ray.now >= 7203
    assert said == [
        "waiting for room: 2 workers of 2 CPUs and 1 GPUs are asked for, "
        "others hold 12 CPUs and 4 GPUs of 16 CPUs and 8 GPUs"
    ]
    assert len(checks) == 119, "once a minute"


def test_a_stop_ends_waiting_and_leaves_nothing_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(monkeypatch, 0, 900)
    assert reserve(WANTED, lambda: ray.now >= 1, lambda text: None) is None
    assert ray.now < 2 and {number for number, _ in ray.removed} == {0, 1, 2, 3}


def test_a_cluster_that_could_not_hold_a_group_any_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(monkeypatch)

    def check() -> None:
        raise ClusterError("the last node is gone")

    with pytest.raises(ClusterError, match="gone"):
        reserve(WANTED, lambda: False, lambda text: None, check)
    assert 60 <= ray.now < 61 and ray.removed == ray.asked
