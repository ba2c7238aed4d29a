"""Drivers that want one run, in a world where machines sleep, clocks jump, and stores are slow or
silent.

Each schedule is a plan of what happens to which request of whom; hypothesis looks for one that
breaks a rule:

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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from milp_ray.errors import RunBusyError, StorageError
from milp_ray.storage import folder_lock as folder_lock_module
from milp_ray.storage import lease as lease_module
from milp_ray.storage.folder_lock import folder_lock
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

SCHEDULES = int(os.environ.get("MILP_RAY_SCHEDULES", "150"))
_LOG = "events/log"
_WRITES = 4


@dataclass
class Place:
    """Where a run is.

    Attributes:
        store: a pyarrow file system.
        root: of the run in it.
        folder: of the run, where it has the kernel's lock as well.
        locks: whom that reaches: ``shared`` (every machine), ``here`` (each machine alone),
            ``none``.
    """

    store: Any
    root: str = "bucket/run"
    folder: Path | None = None
    locks: str = "shared"


@dataclass
class Run:
    """What happened to a run."""

    world: World
    place: Place
    reader: int = 0  # the latest session that has read the run
    told: list[str] = field(default_factory=list)  # lines that a driver was told to be written
    sessions: int = 0
    lost: int = 0
    locked: dict[str, str] = field(default_factory=dict)  # whom a kernel's lock reaches -> who has it

    def landed(self, session: Callable[[], int]) -> Callable[[Actor, str], None]:
        def look(actor: Actor, path: str) -> None:
            if path.endswith(_LOG):
                mine, now = session(), self.reader
                assert mine == now, f"{actor.name}'s session {mine} wrote after session {now} took over"

        return look

    @contextlib.contextmanager
    def held(self, actor: Actor, lease: Callable[[bool], Lease]) -> Iterator[Lease]:
        """The run, as a driver holds it: a lease, and in a folder the kernel's lock as well."""
        if self.place.folder is None:
            with lease(False) as held:
                yield held
            return
        mount = self.place.folder.with_name(f"mount-{actor.name}")  # the folder, as its machine has it
        if not mount.exists():
            mount.symlink_to(self.place.folder)
        reach = "all" if self.place.locks == "shared" else actor.machine
        try:
            with folder_lock(mount, lease=lambda objects, locked: lease(locked)) as held:
                yield held
        finally:
            if self.locked.get(reach) == actor.name:
                del self.locked[reach]

    def lock(self, file: Any, root: Path) -> bool:
        """The kernel's answer to who wants the lock, as in ``folder_lock``."""
        if self.place.locks == "none":
            return False
        actor = self.world.actors[root.name.removeprefix("mount-")]
        reach = "all" if self.place.locks == "shared" else actor.machine
        if reach in self.locked:
            raise RunBusyError("another milp-ray is working on this run")
        self.locked[reach] = actor.name
        return True


def drive(run: Run, actor: Actor) -> None:
    """A driver as the product's: it takes the run, reads it, and puts the log whole after every
    line."""
    session = 0
    clock = WorldClock(run.world, actor)
    files = WorldFiles(run.world, actor, run.place.store, run.landed(lambda: session))
    objects = Objects(files, run.place.root, "s3://bucket/run", sleep=clock.sleep)
    process = WorldProcess.of(run.world, actor)

    def lease(locked: bool) -> Lease:
        return Lease(objects, clock=clock, process=process, kernel_lock=locked, background=False)

    left = _WRITES
    while left:
        try:
            with run.held(actor, lease) as held:
                run.sessions += 1
                session = run.sessions
                try:
                    log = objects.get(_LOG)
                except FileNotFoundError:
                    log = b""
                run.reader = max(run.reader, session)
                guarded = objects.guarded(held)
                while left:
                    clock.sleep(10)
                    with contextlib.suppress(StorageError):
                        held.heartbeat()
                    line = f"{actor.name}{session}:{left}\n"
                    log += line.encode()
                    held.ensure_held()
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


def play(place: Place, plan: Plan, where: Sequence[str], when: Sequence[float]) -> Run:
    """One schedule: three drivers, what the plan says, and a fourth one when all that is over."""
    world = World(until=60_000)
    if isinstance(place.store, Shelf) and place.store.times is not None:
        place.store.times = lambda: world.time
    run = Run(world, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease_module, "secrets", _Numbers(itertools.count()))
        patch.setattr(folder_lock_module, "_locked", run.lock)
        for name, machine, at in zip("abc", where, when, strict=True):
            world.add(name, machine, lambda actor: drive(run, actor), at, disturbances_of(name, plan))
        world.add("z", "m9", lambda actor: drive(run, actor), 8000.0, {})
        world.run()
    return run


class _Numbers:
    """Ids in their order, so that a schedule is the same each time."""

    def __init__(self, numbers: Any) -> None:
        self.numbers = numbers

    def token_hex(self, size: int) -> str:
        return f"{next(self.numbers):0{2 * size}x}"


def check(run: Run) -> None:
    """The rules that hold in the end."""
    try:
        log = Objects(run.place.store, run.place.root, "").get(_LOG).decode()
    except FileNotFoundError:
        log = ""
    if not run.world.ghosts:  # a put that lands after a later one undoes it: no client can help that
        assert [line for line in run.told if line not in log] == []
    assert any(line.startswith("z") for line in run.told)


def search(make: Callable[[], Place], schedules: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Look for a schedule that breaks a rule."""
    seen: Counter[str] = Counter()

    @settings(
        max_examples=schedules,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=True,
    )
    @given(plans, machines, starts)
    def schedule(plan: Any, where: Any, when: Any) -> None:
        run = play(make(), plan, where, when)
        check(run)
        seen.update({"schedules": 1, "sessions": run.sessions, "lost by a living driver": run.lost})

    schedule()
    if SCHEDULES > 1000:
        with capsys.disabled():
            sys.stdout.write(f"\n{dict(seen)}\n")


SHELVES: dict[str, Callable[[], Shelf]] = {
    "store": lambda: Shelf("s3", times=None),
    "store with times": lambda: Shelf("s3", times=lambda: 0.0),
    "files": lambda: Shelf("sftp", times=None),
}


@pytest.mark.parametrize("kind", SHELVES)
def test_drivers_never_mix_and_nothing_is_lost(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    search(lambda: Place(SHELVES[kind]()), SCHEDULES, capsys)


@pytest.mark.parametrize("locks", ["shared", "here", "none"])
def test_drivers_never_mix_in_a_folder(
    locks: str, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyarrow import fs

    def make() -> Place:
        folder = tmp_path_factory.mktemp("folder") / "run"
        folder.mkdir()
        return Place(fs.LocalFileSystem(), str(folder), folder, locks)

    search(make, SCHEDULES // 6, capsys)


def test_drivers_never_mix_on_a_real_store(objects: Objects, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = itertools.count()
    search(lambda: Place(objects._fs, f"{objects._root}/{next(numbers)}"), max(SCHEDULES // 30, 2), capsys)
