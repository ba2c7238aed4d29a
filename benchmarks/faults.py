"""What does it cost when a process dies? Kill it, and see what was lost and how long work stood.

A study of the demo's people (3 users, 4 random placements each, two workers per trial unless the
fault says otherwise) is run undisturbed once, and then once for each fault: a process is killed or
stopped by its id while it works. Afterwards every trial must have been told once, with the loss of
the undisturbed run, and every user must have a memory with the test loss of the undisturbed run.

    python benchmarks/faults.py                      # about 40 minutes
    python benchmarks/faults.py --only rank-killed       # the other rows stay as they are

Writes results/faults.csv: per fault the trials lost and told twice, the largest difference of a
loss, the seconds from the fault to the next result, and the seconds between two results of the
undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "search.trials=4",
    "search.initial=4",
    "search.surrogate=random",
    "final.checkpoint_steps=20",
    "ray.workers_per_trial=2",
    "ray.parallelism=zero2",
    "ray.cpus_per_worker=1",
    "ray.max_concurrent=1",
    "ray.group_timeout=10",
)
SEARCH, FINAL = "search", "final"
# The stage in which the fault comes is long enough to be hit; the other one is only compared.
LENGTHS = {SEARCH: ("trial.epochs=12", "final.epochs=8"), FINAL: ("trial.epochs=2", "final.epochs=60")}
_END_SECONDS = 60.0


@dataclass(frozen=True)
class Fault:
    """What is done to which process, in which stage.

    ``title`` is part of the process's title; "driver" and "node" stand for these. ``damage``: the
    newest state of a training is changed as well. ``settings`` come after :data:`SETTINGS`.
    ``check_ms``: how often Ray checks its nodes, if not by its default.
    """

    name: str
    stage: str = SEARCH
    title: str = ""
    how: int = signal.SIGKILL
    damage: bool = False
    settings: tuple[str, ...] = ()
    check_ms: int | None = None

    @property
    def overrides(self) -> tuple[str, ...]:
        """Of the study, the same for the undisturbed run."""
        return (*SETTINGS, *LENGTHS[self.stage], *self.settings)


_ALONE = ("ray.workers_per_trial=1", "ray.parallelism=none")
FAULTS = (
    Fault("worker-hung", title="ray::MemoryTrial", how=signal.SIGSTOP, settings=_ALONE),
    Fault("rank-killed", title="ray::Rank"),
    Fault("rank-hung", title="ray::Rank", how=signal.SIGSTOP),
    Fault("trainable-killed", title="GroupTrial"),
    Fault("driver-killed", title="driver"),
    Fault("node-killed", title="node"),
    Fault("node-killed-check-500-ms", title="node", check_ms=500),
    Fault("final-rank-killed", FINAL, "RayTrainWorker"),
    Fault("final-rank-hung", FINAL, "RayTrainWorker", signal.SIGSTOP),
    Fault("final-driver-killed", FINAL, "driver"),
    Fault("final-driver-killed-and-state-flipped", FINAL, "driver", damage=True),
    Fault("final-node-killed", FINAL, "node"),
    Fault("final-node-killed-check-500-ms", FINAL, "node", check_ms=500),
)


@dataclass
class Run:
    """A run of the study, watched from outside."""

    study: Path
    name: str
    address: str | None = None
    results: list[float] = field(default_factory=list)  # when results were seen
    seen: int = 0

    @property
    def folder(self) -> Path:
        return self.study.parent / "runs" / self.name

    def start(self, *words: str) -> subprocess.Popen[str]:
        more = [f"ray.address={self.address}"] if self.address else []
        log = (self.study.parent / f"{self.name}.log").open("a")
        return subprocess.Popen(
            [sys.executable, "-m", "milp_ray", *words, *more], stdout=log, stderr=log, text=True, cwd=ROOT
        )

    def count(self, stage: str) -> int:
        """Results so far: trials told, or states and memories of the final job."""
        if stage == SEARCH:
            return len(self.told())
        states = [int(path.name) for path in self.folder.glob("checkpoints/*/[0-9]*")]
        return 1000 * len(list(self.folder.glob("memories/u-*"))) + max(states, default=0)

    def told(self) -> list[tuple[str, int, float]]:
        """(alias, trial, loss) of every told trial."""
        return [
            (path.stem, event["id"], event["values"]["loss"])
            for path in sorted(self.folder.glob("events/*.jsonl"))
            for line in path.read_text(encoding="utf-8").splitlines()
            if line and (event := json.loads(line))["event"] == "told"
        ]

    def losses(self) -> list[float]:
        """The losses of all trials and tests, in an order that is the same in every run."""
        users: dict[str, list[float]] = {}
        for alias, _, loss in sorted(self.told()):
            users.setdefault(alias, []).append(loss)
        for alias, values in users.items():
            path = self.folder / "scores" / f"{alias}.json"
            values += [scores["loss"] for scores in json.loads(path.read_text())["models"].values()]
        return [loss for values in sorted(users.values()) for loss in values]

    def until(self, process: subprocess.Popen[str], stage: str, more: int) -> float:
        """Wait for ``more`` results; the seconds it took."""
        began, target = time.monotonic(), self.count(stage) + more
        while self.count(stage) < target:
            if process.poll() not in (None, 0):
                raise SystemExit(f"{self.name}: exit {process.returncode}, see {self.study.parent}")
            if process.poll() == 0:
                break
            time.sleep(0.02)
        return time.monotonic() - began


def titled(title: str, root: int) -> list[psutil.Process]:
    """Descendants with this title; a script cannot import tests/processes.py's."""
    found = []
    with contextlib.suppress(psutil.Error):  # it ended meanwhile
        for child in psutil.Process(root).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if title in " ".join(child.cmdline()):  # a zombie has none
                    found.append(child)
    return found


def harm(fault: Fault, process: subprocess.Popen[str], raylets: list[int]) -> list[psutil.Process]:
    """Do the harm; returns processes whose further results are no recovery.

    A killed driver's processes live on for some seconds. So do the other workers of a final job,
    which ends as a whole when one of its nodes does.
    """
    if fault.title == "driver":
        # All but Ray's own agents, which write no results, and look for their raylet for a minute.
        orphans = [p for p in psutil.Process(process.pid).children(recursive=True) if not is_agent(p)]
        process.kill()
        process.wait()
        return orphans
    title = {"node": "ray::Rank" if fault.stage == SEARCH else "RayTrainWorker"}.get(fault.title, fault.title)
    while True:
        if fault.title == "node":
            at_work = [pid for pid in raylets[1:] if titled(title, pid)]
            if at_work:
                ends = raylets if fault.stage == FINAL else []
                doomed = [worker for pid in ends for worker in titled(title, pid)]
                os.kill(at_work[0], fault.how)
                return doomed
        elif found := titled(title, process.pid):
            os.kill(found[-1].pid, fault.how)
            return []
        time.sleep(0.05)


def is_agent(process: psutil.Process) -> bool:
    """Whether it is Ray's dashboard or runtime-environment agent of a node."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()).rstrip().endswith("Agent")
    return False


def wait_for_end(doomed: list[psutil.Process]) -> None:
    """Wait until none of them runs; where nobody reaps orphans they stay as zombies.

    Raises:
        SystemExit: some still run when they should not, and would be taken for a recovery.
    """
    deadline = time.monotonic() + _END_SECONDS
    while left := list(filter(runs, doomed)):
        if time.monotonic() > deadline:
            raise SystemExit(f"still there {_END_SECONDS:.0f} s later: {', '.join(map(str, left))}")
        time.sleep(0.05)


def runs(process: psutil.Process) -> bool:
    """Whether it is neither gone nor a zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    return False


def flip(run: Run) -> None:
    """Change one byte of the newest state."""
    path = max(run.folder.glob("checkpoints/*/[0-9]*")) / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


@contextmanager
def nodes(fault: Fault) -> Iterator[tuple[str | None, list[int]]]:
    """Four nodes of one CPU, where a node is to die: their head's address, the raylets' ids."""
    if fault.title != "node":
        yield None, []
        return
    folder = tempfile.mkdtemp(prefix="n", dir="/tmp")
    words = [sys.executable, "-m", "tests.study.nodes", folder, "1", "1", "1", "1"]
    period = {} if fault.check_ms is None else {"RAY_health_check_period_ms": str(fault.check_ms)}
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={**os.environ, **period},
    )
    assert process.stdout is not None
    found = json.loads(process.stdout.readline())
    try:
        yield found["address"], found["raylets"]
    finally:
        process.communicate("")
        shutil.rmtree(folder, ignore_errors=True)


def undisturbed(study: Path, name: str, overrides: tuple[str, ...]) -> tuple[Run, dict[str, float]]:
    """The run that others are compared with, and the median seconds between two of its results."""
    run, gaps = Run(study, name), {}
    steps: dict[str, Callable[[], subprocess.Popen[str]]] = {
        SEARCH: lambda: run.start(
            "search", str(study), f"name={run.name}", *overrides, "final.automatic=false"
        ),
        FINAL: lambda: run.start("final", str(run.folder)),
    }
    for stage, begin in steps.items():
        process = begin()
        run.until(process, stage, 1)
        waits = []
        while process.poll() is None:
            waits.append(run.until(process, stage, 1))
        gaps[stage] = statistics.median(waits[:-1] or waits)
    return run, gaps


def measured(study: Path, fault: Fault, plain: Run, gaps: dict[str, float]) -> dict[str, object]:
    """One fault: what it cost."""
    with nodes(fault) as (address, raylets):
        run = Run(study, fault.name, address)
        words = ("search", str(study), f"name={run.name}", *fault.overrides, "final.automatic=false")
        process = run.start(*words)
        if fault.stage == FINAL:
            process.wait()
            process = run.start("final", str(run.folder))
        run.until(process, fault.stage, 2)
        before = run.told()
        orphans = harm(fault, process, raylets)
        if fault.damage:
            flip(run)
        began = time.monotonic()
        if fault.title == "driver":
            process = run.start("resume" if fault.stage == SEARCH else "final", str(run.folder))
        wait_for_end(orphans)
        run.until(process, fault.stage, 1)
        seconds = time.monotonic() - began
        process.wait()
        if fault.stage == SEARCH:
            process = run.start("final", str(run.folder))
            process.wait()
    told = [(alias, number) for alias, number, _ in run.told()]
    mine, theirs = run.losses(), plain.losses()
    apart = (
        max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) if len(mine) == len(theirs) else math.nan
    )
    return {
        "fault": fault.name,
        "exit": process.returncode,
        "trials lost": len({(alias, number) for alias, number, _ in before} - set(told)),
        "trials told twice": len(told) - len(set(told)),
        "trials": len(told),
        "largest difference of a loss": f"{apart:.1e}",
        "seconds to the next result": round(seconds, 1),
        "seconds undisturbed": round(gaps[fault.stage], 1),
    }


def main() -> None:
    """Run all faults, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[fault.name for fault in FAULTS])
    parser.add_argument("--demo", type=Path, default=ROOT / ".cache" / "demo")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "faults.csv")
    args = parser.parse_args()
    environment = {
        "RAY_AUTH_MODE": "disabled",  # of the nodes; a private Ray has a token of its own
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    os.environ.update(environment)
    os.environ.pop("RAY_ADDRESS", None)
    from milp_ray.ids import new_key
    from milp_ray.study.demo import prepare_demo

    made = prepare_demo(args.demo)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    study = folder / "study.yaml"
    settings = yaml.safe_load(made.read_text(encoding="utf-8"))
    settings["storage"]["path"] = str(folder / "runs")
    # One key for all runs: by another one a user has other seeds, and losses could not be compared.
    key = folder / "alias.key"
    key.write_bytes(new_key())
    key.chmod(0o600)
    settings["data"]["alias_key"] = str(key)
    study.write_text(yaml.safe_dump(settings), encoding="utf-8")
    plain: dict[tuple[str, ...], tuple[Run, dict[str, float]]] = {}
    rows: dict[str, dict[str, object]] = {}
    if args.only and args.out.exists():
        with args.out.open(newline="") as file:
            rows = {row["fault"]: dict(row) for row in csv.DictReader(file)}
    for fault in FAULTS:
        if args.only and fault.name not in args.only:
            continue
        if fault.overrides not in plain:
            plain[fault.overrides] = undisturbed(study, f"undisturbed-{len(plain)}", fault.overrides)
        found = rows[fault.name] = measured(study, fault, *plain[fault.overrides])
        print(*found.values(), flush=True)
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(found))
            writer.writeheader()
            writer.writerows(rows[known.name] for known in FAULTS if known.name in rows)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
