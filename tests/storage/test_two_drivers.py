"""Drivers that want one run, in a world where machines sleep, clocks jump, and stores are slow or silent.

Each schedule is a plan of what happens to which request of whom; hypothesis looks for one that breaks a rule:

* once a driver has taken a run over and read it, nothing of an earlier one lands there;
* what a driver was told to be written is still there in the end;
* whoever wants the run gets it and finishes, once the others are done or gone.

``MILP_RAY_SCHEDULES=20000`` runs that many for each kind of store.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from milp_ray.errors import RunBusyError, StorageError
from milp_ray.storage import lease as lease_module
from milp_ray.storage.lease import Lease
from milp_ray.storage.objects import Objects
from tests.storage.world import (
    LONGEST,
    Actor,
    Disturbance,
    Shelf,
    World,
    WorldClock,
    WorldFiles,
    WorldProcess,
)

SCHEDULES = int(os.environ.get("MILP_RAY_SCHEDULES", "60"))
_LOG = "events/log"
_WRITES = 4


@dataclass
class Run:
    """What happened to a run."""

    world: World
    store: Any
    reader: int = 0  # the latest session that has read the run
    told: list[str] = field(default_factory=list)  # lines that a driver was told to be written
    sessions: int = 0
    lost: int = 0

    def landed(self, session: Callable[[], int]) -> Callable[[Actor, str], None]:
        def look(actor: Actor, path: str) -> None:
            if path.endswith(_LOG):
                mine, now = session(), self.reader
                assert mine == now, f"{actor.name}'s session {mine} wrote after session {now} took over"

        return look


def drive(run: Run, actor: Actor) -> None:
    """A driver as the product's: it takes the run, reads it, and puts the log whole after every line."""
    session = 0
    clock = WorldClock(run.world, actor)
    files = WorldFiles(run.world, actor, run.store, run.landed(lambda: session))
    objects = Objects(files, "bucket/run", "s3://bucket/run", sleep=clock.sleep)
    process = WorldProcess.of(run.world, actor)
    left = _WRITES
    while left:
        lease = Lease(objects, clock=clock, process=process, background=False)
        try:
            with lease:
                run.sessions += 1
                session = run.sessions
                try:
                    log = objects.get(_LOG)
                except FileNotFoundError:
                    log = b""
                run.reader = max(run.reader, session)
                guarded = objects.guarded(lease)
                while left:
                    clock.sleep(10)
                    with contextlib.suppress(StorageError):
                        lease.heartbeat()
                    line = f"{actor.name}{session}:{left}\n"
                    log += line.encode()
                    lease.ensure_held()
                    guarded.put(_LOG, log)
                    run.told.append(line)
                    left -= 1
        except RunBusyError as error:
            run.lost += "took over" in str(error)
            clock.sleep(5)
        except StorageError:
            clock.sleep(5)


_SUSPENDED = (1.0, 20.0, 39.0, 41.0, 80.0, 119.0, 121.0, 125.0, 400.0, 2000.0)
_LATE = (1.0, 10.0, 20.0, LONGEST)
KINDS: dict[str, tuple[float, ...]] = {
    "suspend": _SUSPENDED,
    "stall": _SUSPENDED,
    "clock": (-7200.0, -120.0, 120.0, 7200.0),
    "refuse": (1.0, 3.0, 6.0, 12.0),  # times
    "lose": (1.0, 2.0, 6.0, 12.0),
    "slow": _LATE,
    "ghost": _LATE,
    "give up": _LATE,  # no try has an answer, and the last one is done later
    "kill": (0.0, 1.0),
}
_TRIES = 6
happenings = st.sampled_from([(kind, amount) for kind, amounts in KINDS.items() for amount in amounts])
places = st.one_of(
    st.tuples(st.sampled_from("abc"), st.just("run"), st.integers(0, 7)),
    st.tuples(st.sampled_from("abc"), st.just("lease"), st.integers(0, 20)),
    st.tuples(st.sampled_from("abc"), st.just("look"), st.integers(0, 60)),
)
plans = st.dictionaries(places, happenings, max_size=9)
machines = st.tuples(st.just("m1"), st.sampled_from(["m1", "m2"]), st.sampled_from(["m1", "m2", "m3"]))
starts = st.tuples(st.just(0.0), st.sampled_from([0.0, 0.1, 20.0, 60.0]), st.sampled_from([0.0, 30.0, 200.0]))
Plan = dict[tuple[str, str, int], tuple[str, float]]


def disturbances_of(name: str, plan: Plan) -> dict[tuple[str, int], Disturbance]:
    """A driver's part of a plan."""
    result: dict[tuple[str, int], Disturbance] = {}
    for (whose, what, number), (kind, amount) in plan.items():
        if whose != name:
            continue
        if kind in ("refuse", "lose"):
            result |= {(what, number + index): Disturbance(kind) for index in range(int(amount))}
        elif kind == "give up":
            result |= {(what, number + index): Disturbance("refuse") for index in range(_TRIES - 1)}
            result[what, number + _TRIES - 1] = Disturbance("ghost", amount)
        else:
            result[what, number] = Disturbance(kind, amount)
    return result


def play(store: Any, plan: Plan, where: Sequence[str], when: Sequence[float]) -> Run:
    world = World(until=60_000)
    if isinstance(store, Shelf) and store.times is not None:
        store.times = lambda: world.time
    run = Run(world, store)
    ids = itertools.count()
    before, lease_module.secrets = lease_module.secrets, _Numbers(ids)  # type: ignore[attr-defined]
    try:
        for name, machine, at in zip("abc", where, when, strict=True):
            world.add(name, machine, lambda actor: drive(run, actor), at, disturbances_of(name, plan))
        world.add("z", "m9", lambda actor: drive(run, actor), 8000.0, {})
        world.run()
    finally:
        lease_module.secrets = before  # type: ignore[attr-defined]
    return run


class _Numbers:
    """Ids in their order, so that a schedule is the same each time."""

    def __init__(self, numbers: Any) -> None:
        self.numbers = numbers

    def token_hex(self, size: int) -> str:
        return f"{next(self.numbers):0{2 * size}x}"


STORES: dict[str, Callable[[], Any]] = {
    "store": lambda: Shelf("s3", times=None),
    "store with times": lambda: Shelf("s3", times=lambda: 0.0),
    "files": lambda: Shelf("sftp", times=None),
}


@pytest.mark.parametrize("kind", STORES)
def test_two_drivers_never_mix_and_nothing_is_lost(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    seen = {"schedules": 0, "sessions": 0, "lost": 0}

    @settings(
        max_examples=SCHEDULES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=True,
    )
    @given(plans, machines, starts)
    def schedules(plan: Any, where: Any, when: Any) -> None:
        store = STORES[kind]()
        run = play(store, plan, where, when)
        end = store.files.get(f"bucket/run/{_LOG}", (b"", None))[0].decode()
        if not run.world.ghosts:  # a put that lands after a later one undoes it: no client can help that
            assert [line for line in run.told if line not in end] == []
        assert any(line.startswith("z") for line in run.told)
        seen["schedules"] += 1
        seen["sessions"] += run.sessions
        seen["lost"] += run.lost

    schedules()
    with capsys.disabled():
        if SCHEDULES > 1000:
            sys.stdout.write(f"\n{kind}: {seen}\n")
