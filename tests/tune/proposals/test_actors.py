"""Proposers: threads and actors give what the plan itself gives, and survive what kills them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from milp_ray.config.models import RaySettings, Study
from milp_ray.errors import SearchError
from milp_ray.memory.placement import Placement
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Engine, Objective, Plan
from milp_ray.search.core.records import EngineSettings
from milp_ray.search.propose import propose
from milp_ray.tune.proposals.threads import Threads, WarmUp, is_free, needs_model
from tests.processes import wait_for

SPACE = MemorySpace(num_layers=6, max_loras=6, ranks=(2, 4, 8))


def objectives() -> tuple[Objective, ...]:
    scale = 3.0

    def size(placement: Placement) -> float:  # a closure, as the study's own count of parameters
        return scale * sum(rank for _, rank in placement.ranks)

    return (Objective("loss", "min"), Objective("trainable_params", "min", exact=size))


def plan_of(surrogate: str = "gp") -> Plan:
    engine = Engine(SPACE, objectives(), initial=4, batch=2, surrogate=surrogate, seed=1)
    for number, proposal in enumerate(engine.ask(4)):
        engine.tell(proposal.id, {"loss": 2.0 + 0.1 * number})
    return engine.plan(2)


def warm_up() -> WarmUp:
    return WarmUp(SPACE, objectives(), EngineSettings(4, 2, "gp", {}, 8))


def test_which_plans_are_worth_sending() -> None:
    first = Engine(SPACE, objectives(), initial=4, surrogate="gp").plan(2)
    assert not needs_model(first) and needs_model(plan_of("gp")) and not needs_model(plan_of("random"))
    assert is_free("sobol") and not is_free("saas")


def test_threads_give_what_the_plan_gives_and_pass_on_errors() -> None:
    woken: list[int] = []
    proposer = Threads(2)
    proposer.listen(lambda: woken.append(1))
    wait_for(lambda: proposer.free == 2)
    plan = plan_of()
    assert list(proposer.submit(plan).result(60)) == list(propose(plan))

    broken = dataclasses.replace(plan, surrogate="none of that name")
    with pytest.raises(SearchError, match="no such surrogate"):
        proposer.submit(broken).result(10)
    wait_for(lambda: proposer.free == 2, 5)
    assert woken
    proposer.close()


def test_a_warm_up_that_fails_stops_nobody() -> None:
    class Refusing(Threads):
        def _begin(self, slot: int) -> None:
            raise OSError("no cache")

    proposer = Refusing(1)
    wait_for(lambda: proposer.free == 1, 5)
    proposer.close()


def study_with(proposers: int | str, **more: Any) -> Study:
    settings = RaySettings.model_validate({"proposers": proposers, **more})
    return Study.model_construct(name="x", ray=settings)


def test_auto_gives_small_machines_a_thread() -> None:
    from milp_ray.tune.proposals.actors import actors_for

    for cpus, expected in ((2, 0), (8, 0), (16, 2), (100, 12)):
        assert actors_for(cpus, 0, idle=-1) == expected
        assert actors_for(cpus, cpus, idle=60) == expected, "no more than trials need"


def test_auto_reckons_with_nodes_that_are_to_come_and_burdens_those_that_are_there() -> None:
    from milp_ray.tune.proposals.actors import actors_for

    assert actors_for(0, asked=128, idle=3) == 3, "a head of four CPUs, without trials"
    assert actors_for(0, asked=128, idle=0) == 0, "a head of one CPU: its driver's thread"
    assert actors_for(0, asked=128, idle=31) == 16
    assert actors_for(4, asked=128, idle=-1) == 0, "a small head that has trials, too"
    assert actors_for(32, asked=128, idle=3) == 7


def test_auto_asks_ray_and_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from milp_ray.tune.proposals import actors as proposers

    head = {"NodeID": "head", "Alive": True, "Resources": {"memory": 1e9}}
    gone = {"NodeID": "gone", "Alive": False, "Resources": {"CPU": 64.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [head, gone])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "head"))
    monkeypatch.setattr(proposers, "get_num_cpus", lambda **_: 4.0)
    wanted = {"max_concurrent": 8, "workers_per_trial": 2, "parallelism": "ddp", "cpus_per_worker": 4.0}
    assert proposers.proposers_of(study_with("auto", **wanted)) == 3
    assert proposers.proposers_of(study_with("auto")) == 0
    assert proposers.proposers_of(study_with(3)) == 3


@pytest.mark.slow
def test_actors_propose_the_same_and_are_replaced_when_killed(cluster: None) -> None:
    import ray

    from milp_ray.tune.proposals.actors import Actors

    proposer = Actors(1, warm_up())
    wait_for(lambda: proposer.free == 1)
    plan = plan_of()
    expected = list(propose(plan))
    assert list(proposer.submit(plan).result(60)) == expected
    ray.kill(proposer._actors[0])
    assert list(proposer.submit(plan).result(90)) == expected, "a lost plan is tried again elsewhere"
    proposer.close()


@pytest.mark.slow
def test_where_no_actor_lives_the_driver_proposes(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from milp_ray.tune.proposals.actors import Actors

    proposer = Actors(1, warm_up())
    wait_for(lambda: proposer.free == 1)
    actor = Actors._actor

    def doomed(self: Actors, slot: int) -> Any:
        handle = actor(self, slot)
        ray.kill(handle)
        return handle

    monkeypatch.setattr(Actors, "_actor", doomed)
    plan = plan_of()
    assert list(proposer.submit(plan).result(120)) == list(propose(plan))
    proposer.close()
