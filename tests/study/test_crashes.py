"""A run that is ended at any one of its writes goes on as if it had not been: nothing lost, nothing
twice.

By default a spread of the crash points is tried; MILP_RAY_CRASH_POINTS=all tries every one (half an
hour).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from pyarrow import fs
from rich.console import Console

from milp_ray.config.loading import load_study
from milp_ray.storage import close_mirrors, mirror, stale_drafts
from milp_ray.storage.objects import Objects
from milp_ray.study import driver, location, run_folder
from tests.study.conftest import bare_model, user_line, write_study
from tests.study.crashing import KILLED, in_a_child, upload_late, without_ray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
QUIET = Console(quiet=True)
SPREAD = os.environ.get("MILP_RAY_CRASH_POINTS", "3")
URL = "memory://store/runs"
PLACES = ["folder", "url, same machine", "url, another machine"]


@dataclass(frozen=True)
class Case:
    """A small study and where its run is. ``keeps``: the machine is the same after the crash."""

    study: Path
    folder: Path
    base: object = None
    url: bool = False
    keeps: bool = True

    @property
    def store(self) -> Path:
        """What stands for the store at the URL."""
        return self.folder / "store"

    @property
    def run(self) -> Path:
        """The run as it is on the disk, at the URL or in its folder."""
        return self.store / "small" if self.url else self.folder / "runs" / "small"

    def prepare(self) -> None:
        """What a child does first."""
        without_ray(self.base)
        os.environ["MILP_RAY_CACHE"] = str(self.folder / "cache")
        driver.new_key = lambda: b"k" * run_folder.KEY_BYTES
        stale_drafts.STALE_SECONDS = 0.0
        if self.url:
            local, root = fs.LocalFileSystem(), self.store / "small"
            mirror.objects_at = lambda url: Objects(local, str(root), url, ())
            if self.keeps:
                upload_late()

    def work(self) -> None:
        """What a person does who wants the study done: begin it, or go on with it."""
        self.prepare()
        words = [f"storage.path={URL}" if self.url else f"storage.path={self.folder / 'runs'}"]
        study = load_study(self.study, words)
        found = location.run_location(study)
        if location.is_run(found):
            driver.resume(found, QUIET)
        else:
            driver.start(study, QUIET)

    @property
    def watched(self) -> list[Path]:
        return [self.folder]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def outcome(case: Case) -> dict[str, object]:
    """All that a finished run holds that is to be the same however it came about."""
    run = case.run
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    names = {str(path.relative_to(run)) for path in files}
    same = [path for path in files if path.suffix in (".csv", ".safetensors")]
    same += [path for path in files if path.parent.name == "scores"]
    return {
        "names": {name for name in names if not name.startswith(("lease", "tables/search_metrics"))},
        "contents": {str(path.relative_to(run)): digest(path) for path in same},
        "logs": {path.name: lines(path) for path in files if path.suffix == ".jsonl"},
    }


def lines(log: Path) -> list[str]:
    """The whole lines of a log; without those that say when something was."""
    content = log.read_bytes()
    return content[: content.rfind(b"\n") + 1].decode().splitlines()


def finished(case: Case) -> dict[str, list[str]]:
    """What a crash must not take: the lines of the logs that this machine, or the URL, has."""
    places = [case.run / "events"]
    if case.url and case.keeps:
        places += (case.folder / "cache").glob("twins/*/run/events")
    found: dict[str, list[str]] = {}
    for log in (log for folder in places for log in folder.glob("*.jsonl")):
        found[log.name] = max(found.get(log.name, []), lines(log), key=len)
    return found


def points(count: int) -> list[int]:
    """Which writes to end a run at, from 1."""
    if SPREAD == "all":
        return list(range(1, count + 1))
    wanted = min(int(SPREAD), count)
    return sorted({1 + round(index * (count - 1) / max(1, wanted - 1)) for index in range(wanted)})


def try_all(make: Callable[[str], Case]) -> None:
    """End the run at each of the points, go on, and compare with one that was left alone."""
    code, found = in_a_child(lambda: _tried(make), [])
    assert code == 0
    print(found[0])  # noqa: T201
    assert not found[1:], "\n".join(found[1:])


def _tried(make: Callable[[str], Case]) -> list[str]:
    """How many points were tried, and what was wrong. In a process of its own, since it is not put
    back."""
    make("first").work()  # what is imported by now is not imported by every child
    close_mirrors()
    whole = make("whole")
    code, writes = in_a_child(whole.work, whole.watched)
    assert code == 0
    wanted, wrong = outcome(whole), []
    for point in points(len(writes)):
        case = _ended_at(point, make)
        before = finished(case)
        if not case.keeps:
            shutil.rmtree(case.folder / "cache", ignore_errors=True)
        try:
            code, _ = in_a_child(case.work, case.watched)
            found = outcome(case)
        except AssertionError as error:
            wrong.append(f"write {point} ({writes[point - 1]}): {str(error).splitlines()[-1]}")
            continue
        faults = [what for what in wanted if found[what] != wanted[what]]
        faults += [
            f"lost lines of {name}"
            for name, had in before.items()
            if had and found["logs"].get(name, [])[: len(had)] != had  # type: ignore[attr-defined]
        ]
        if faults:
            differences = {what: _difference(wanted[what], found[what]) for what in faults if what in wanted}
            wrong.append(f"write {point} ({writes[point - 1]}): {faults} {differences}")
        shutil.rmtree(case.folder)
    return [f"{len(points(len(writes)))} of {len(writes)} crash points tried", *wrong]


def _ended_at(point: int, make: Callable[[str], Case]) -> Case:
    """A run that ended at a write, or some writes earlier where it had fewer of them.

    How many uploads there are at a URL depends on how long each takes.
    """
    latest = point
    for attempt in range(5):
        case = make(f"at-{point}-{attempt}")
        code, writes = in_a_child(case.work, case.watched, latest)
        if code == KILLED:
            return case
        assert code == 0 and len(writes) < latest
        latest = len(writes) - attempt
    raise AssertionError(f"write {point} was not reached, nor was {latest}")


def _difference(wanted: object, found: object) -> object:
    if isinstance(wanted, dict) and isinstance(found, dict):
        return sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    assert isinstance(wanted, set) and isinstance(found, set)
    return sorted(wanted ^ found)


@pytest.fixture
def simulated(tmp_path: Path) -> Path:
    """Two users on a model of which nothing but its structure is there."""
    model = bare_model(tmp_path / "model", layers=4, width=64)
    (tmp_path / "users.jsonl").write_text(f"{user_line(1)}\n{user_line(2)}\n", encoding="utf-8")
    study = {
        "name": "small",
        "model": {"path": str(model)},
        "data": {"path": str(tmp_path / "users.jsonl")},
        "memory": {"ranks": [2, 4, 8], "defaults": {"size": 4}},
        "simulation": {"seconds": 0, "failures": 0.3},
        "search": {"trials": 3, "initial": 2, "batch": 2, "surrogate": "random", "cohort": 1},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


@pytest.fixture(params=PLACES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Callable[[str], Case]]:
    """Makes cases of one kind of place."""
    url, keeps = request.param != "folder", request.param != "url, another machine"

    def of(study: Path, base: object = None) -> Callable[[str], Case]:
        def case(name: str) -> Case:
            folder = tmp_path / "cases" / name
            folder.mkdir(parents=True)
            return Case(study, folder, base, url, keeps)

        return case

    return of


def test_a_simulated_study(simulated: Path, make: Callable[..., Callable[[str], Case]]) -> None:
    try_all(make(simulated))


@pytest.mark.parametrize(
    "make",
    ["folder", *(pytest.param(where, marks=pytest.mark.nightly) for where in PLACES[1:])],
    indirect=True,
)
def test_a_real_study_of_divided_users(
    tmp_path: Path, shallow_model: Path, make: Callable[..., Callable[[str], Case]]
) -> None:
    path = real_study(tmp_path, shallow_model)
    study = yaml.safe_load(path.read_text())
    study["data"]["split"] = {"regime": "by_user"}
    study["trial"]["stages"] = ["inject", "instruct"]
    path.write_text(yaml.safe_dump(study))
    lines = [user_line(number, samples=2) for number in range(6)]
    (tmp_path / "users.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    try_all(make(path, loaded_base(shallow_model)))


def test_a_real_study(
    tmp_path: Path, shallow_model: Path, make: Callable[..., Callable[[str], Case]]
) -> None:
    try_all(make(real_study(tmp_path, shallow_model), loaded_base(shallow_model)))


def loaded_base(folder: Path) -> object:
    from milp_ray.config.models import ModelSettings
    from milp_ray.model.base import load_base

    return load_base(ModelSettings(path=str(folder), device="cpu"))


def real_study(tmp_path: Path, shallow_model: Path) -> Path:
    """Two trials a search, and states of trainings that are kept on the way."""
    path = write_study(tmp_path, shallow_model)
    study = yaml.safe_load(path.read_text())
    study["search"] |= {"trials": 2, "initial": 2, "surrogate": "random"}
    study["trial"] |= {"max_new_tokens": 2}
    study["final"] |= {"checkpoint_steps": 6}
    study["data"]["max_history"] = 6
    path.write_text(yaml.safe_dump(study))
    return path
