"""A small world of machines, clocks, networks and one store, in which leases and writes run as they
are.

Every actor is a thread of its own, and only one runs at a time: whatever an actor asks of the
store, and every sleep, hands control to the world, which keeps simulated time. So a schedule is
repeatable, and minutes pass in milliseconds. A store's answer takes a moment; disturbances make one
slow, lost or wrong, stop a whole machine, set its wall clock, or kill its process.
"""

from __future__ import annotations

import heapq
import io
import itertools
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from milp_ray.storage.clock import Clock
from milp_ray.storage.owner import Owner, Process

ANSWER = 0.05  # seconds
# No attempt to write is longer under way than this: a client's time-outs see to it.
LONGEST = 30.0
_READS = ("get_file_info", "open_input_file")


class Killed(BaseException):
    """The actor's process is gone; raised wherever it stands, and again at whatever it does
    then."""


class StuckError(AssertionError):
    """Nobody gets on."""


@dataclass
class Disturbance:
    """What happens to an actor around one of its requests.

    ``kind``: ``suspend`` (its machine, for ``amount`` s, from the request on), ``clock`` (its wall
    clock, by ``amount`` s), ``refuse`` (the store says no), ``lose`` (done, but no answer comes),
    ``slow`` (done after ``amount`` s), ``ghost`` (no answer comes, and it is done ``amount`` s
    later), ``stall`` (the store says no, and the machine is suspended for ``amount`` s before it
    hears of it), ``kill`` (done if ``amount``).
    """

    kind: str
    amount: float = 0.0


@dataclass
class Actor:
    name: str
    machine: str
    disturbances: dict[tuple[str, int], Disturbance] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    dead: bool = False
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    request: tuple[Callable[[], Any] | None, float, str] | None = None
    answer: tuple[Any, BaseException | None] = (None, None)
    thread: threading.Thread | None = None
    failure: BaseException | None = None
    over: bool = False
    started: float = 0.0


class World:
    """See the module. ``until``: seconds after which somebody must be done with everything."""

    def __init__(self, until: float) -> None:
        self.time = 1000.0
        self.until = until
        self.actors: dict[str, Actor] = {}
        self.wall: dict[str, float] = {}
        self.asleep: dict[str, float] = {}  # machine -> until when it is suspended
        self.ghosts = 0
        self._slept: dict[str, float] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._mine = threading.Semaphore(0)

    def add(
        self,
        name: str,
        machine: str,
        work: Callable[[Actor], None],
        at: float,
        disturbances: dict[tuple[str, int], Disturbance],
    ) -> Actor:
        """An actor that begins its work after ``at`` seconds.

        ``disturbances``: by the kind of a request (``look``, ``lease``: a write of that, ``run``: a
        write of all else), and its number among its kind.
        """
        actor = Actor(name, machine, disturbances, started=self.time + at)
        self.actors[name] = actor
        self.wall.setdefault(machine, 0.0)

        def body() -> None:
            actor.turn.acquire()
            try:
                if not actor.dead:
                    work(actor)
            except Killed:
                pass
            except BaseException as error:
                actor.failure = error
            actor.over = True
            self._mine.release()

        actor.thread = threading.Thread(target=body, daemon=True)
        actor.thread.start()
        self._later(at, lambda: self._resume(actor))
        return actor

    def run(self) -> None:
        """Let everything happen.

        Raises:
            StuckError: an actor is not done in time.
        """
        while self._events:
            time, _, event = heapq.heappop(self._events)
            self.time = max(self.time, time)
            if self.time > 1000.0 + self.until:
                waiting = [actor.name for actor in self.actors.values() if not actor.over]
                self._end()
                raise StuckError(f"not done after {self.until:.0f} s: {waiting}")
            event()
            for actor in self.actors.values():
                if actor.failure is not None:
                    failure, actor.failure = actor.failure, None
                    self._end()
                    raise failure

    def ask(self, actor: Actor, act: Callable[[], Any] | None, seconds: float, kind: str = "look") -> Any:
        """From an actor's thread: do something in the world, or only wait; returns or raises its
        result."""
        if actor.dead:
            raise Killed
        actor.request = (act, seconds, kind)
        self._mine.release()
        actor.turn.acquire()
        if actor.dead:
            raise Killed
        result, error = actor.answer
        if error is not None:
            raise error
        return result

    def slept(self, machine: str) -> float:
        """Seconds for which a machine has been suspended."""
        return self._slept.get(machine, 0.0)

    def kill(self, actor: Actor) -> None:
        actor.dead = True

    def _later(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.time + seconds, next(self._order), event))

    def _resume(self, actor: Actor) -> None:
        """Give an actor its turn, unless its machine is suspended, and take what it asks for
        then."""
        if actor.over:
            return
        awake = self.asleep.get(actor.machine, 0.0)
        if awake > self.time and not actor.dead:
            self._later(awake - self.time, lambda: self._resume(actor))
            return
        actor.request = None
        actor.turn.release()
        self._mine.acquire()
        if actor.request is not None:
            self._take(actor, *actor.request)

    def _take(self, actor: Actor, act: Callable[[], Any] | None, seconds: float, what: str) -> None:
        if act is None:
            actor.answer = (None, None)
            self._later(seconds, lambda: self._resume(actor))
            return
        found = actor.disturbances.pop((what, actor.requests[what]), None)
        actor.requests[what] += 1
        kind, amount = (found.kind, found.amount) if found else ("", 0.0)
        if kind == "clock":
            self.wall[actor.machine] += amount
        if kind == "kill":
            self.kill(actor)
        if kind in ("suspend", "stall"):
            self.asleep[actor.machine] = self.time + amount
            self._slept[actor.machine] = self.slept(actor.machine) + amount
        delay = ANSWER if kind not in ("slow", "ghost") else min(amount, LONGEST)

        def do() -> tuple[Any, BaseException | None]:
            try:
                return act(), None
            except Exception as error:
                return None, error

        def land() -> None:
            if not actor.dead or (kind == "kill" and amount):  # a dead client's request may be cut off
                actor.answer = do()
            if kind == "lose":
                actor.answer = (None, OSError("AWS Error NETWORK_CONNECTION: no answer"))
            self._resume(actor)

        if kind in ("refuse", "stall"):
            actor.answer = (None, OSError("AWS Error SLOW_DOWN"))
            self._later(delay, lambda: self._resume(actor))
        elif kind == "ghost" and what != "look":
            self.ghosts += 1
            actor.answer = (None, OSError("AWS Error NETWORK_CONNECTION: timed out"))
            self._later(delay, lambda: None if actor.dead else do() and None)
            self._later(min(delay, 3.0), lambda: self._resume(actor))
        else:
            self._later(delay, land)

    def _end(self) -> None:
        """Let all threads end."""
        for actor in self.actors.values():
            actor.dead = True
            if not actor.over:
                actor.turn.release()
                self._mine.acquire()


class WorldClock(Clock):
    """The clocks of an actor's machine."""

    def __init__(self, world: World, actor: Actor) -> None:
        self.world, self.actor = world, actor

    def boot(self) -> float:
        return self.world.time

    def wall(self) -> float:
        return 1.8e9 + self.world.time + self.world.wall[self.actor.machine]

    def sleep(self, seconds: float) -> None:
        self.world.ask(self.actor, None, seconds)


class WorldFiles:
    """A pyarrow file system as an actor sees it, through the world."""

    def __init__(self, world: World, actor: Actor, inner: Any, landed: Callable[[Actor, str], None]) -> None:
        self.world, self.actor, self.inner, self.landed = world, actor, inner, landed
        self.type_name = inner.type_name

    def open_output_stream(self, path: str) -> _Put:
        return _Put(self, path)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            def act() -> Any:
                result = found(*args, **kwargs)
                if name == "move":
                    self.landed(self.actor, args[1])
                return result

            path = str(args[-1])
            return self.world.ask(self.actor, act, 0.0, "look" if name in _READS else _kind(path))

        return call

    def put(self, path: str, content: bytes) -> None:
        def act() -> None:
            with self.inner.open_output_stream(path) as stream:
                stream.write(content)
            self.landed(self.actor, path)

        self.world.ask(self.actor, act, 0.0, _kind(path))


def _kind(path: str) -> str:
    return "lease" if "/lease/" in path else "run"


class _Put(io.BytesIO):
    """An object that is put when it is closed."""

    def __init__(self, files: WorldFiles, path: str) -> None:
        super().__init__()
        self.files, self.path = files, path

    def __exit__(self, *error: object) -> None:
        self.files.put(self.path, self.getvalue())


@dataclass(frozen=True)
class _Info:
    path: str
    size: int
    mtime_ns: int | None
    is_file: bool = True


class Shelf:
    """The simplest store: a dictionary that speaks as much of pyarrow as is needed.

    Args:
        type_name: ``s3``: a put is whole by itself; another: a sibling is renamed.
        times: of the world, or None: it keeps no times.
    """

    def __init__(self, type_name: str, times: Callable[[], float] | None) -> None:
        self.type_name, self.times = type_name, times
        self.files: dict[str, tuple[bytes, int | None]] = {}

    def open_output_stream(self, path: str) -> Any:
        shelf = self

        class Stream(io.BytesIO):
            def __exit__(self, *error: object) -> None:
                shelf.files[path] = (self.getvalue(), shelf._now())

        return Stream()

    def open_input_file(self, path: str) -> Any:
        if path not in self.files:
            raise FileNotFoundError(path)
        return io.BytesIO(self.files[path][0])

    def move(self, source: str, target: str) -> None:
        if source not in self.files:
            raise FileNotFoundError(source)
        self.files[target] = self.files.pop(source)

    def delete_file(self, path: str) -> None:
        if self.files.pop(path, None) is None:
            raise FileNotFoundError(path)

    def get_file_info(self, where: Any) -> Any:
        if isinstance(where, str):
            found = self.files.get(where)
            return _Info(where, 0, None, is_file=found is not None)
        start = where.base_dir + "/"
        return [
            _Info(path, len(content), time)
            for path, (content, time) in self.files.items()
            if path.startswith(start)
        ]

    def _now(self) -> int | None:
        return None if self.times is None else int(self.times() * 1e9)


class WorldProcess(Process):
    """A process of the world, which knows of the others on its machine whether they have ended."""

    world: World

    @classmethod
    def of(cls, world: World, actor: Actor) -> WorldProcess:
        machine, number = actor.machine, list(world.actors).index(actor.name)
        result = cls(machine, f"boot-{machine}", f"{machine} boot-{machine} pids", number, 0.0)
        object.__setattr__(result, "world", world)
        return result

    def has_ended(self, owner: Owner) -> bool:
        if owner.process.machine != self.machine:
            return False
        other = list(self.world.actors.values())[owner.process.pid]
        return other.over
