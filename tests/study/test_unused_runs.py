"""A run that no cluster could be had for goes again, and nothing else ever does."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from milp_ray.errors import ClusterError, RunBusyError
from milp_ray.search.core.events import EventLog
from milp_ray.storage import close_mirrors, mirror_of, write_json
from milp_ray.storage import mirror as mirrors
from milp_ray.storage.objects import objects_at
from milp_ray.study import creation
from milp_ray.study.driver import _at_work
from milp_ray.study.location import is_run
from milp_ray.study.run_folder import RunFolder
from tests.study.test_run_folder import a_study, at

QUIET = Console(quiet=True)
NO_CLUSTER = "the cluster cannot be had"


@pytest.fixture(params=("folder", "memory"))
def made(request: pytest.FixtureRequest, tmp_path: Path, own_mirrors: None) -> RunFolder:
    """A new run in a folder, and at a URL."""
    if request.param == "folder":
        return RunFolder.create(a_study(tmp_path / "runs"), "f")
    return RunFolder.create(at(f"memory://{secrets.token_hex(6)}/runs"), "f")


Elsewhere = Callable[[], AbstractContextManager[RunFolder]]


@pytest.fixture
def elsewhere(made: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """The run as a process of another machine opens it; what this one has of it is put aside
    meanwhile."""

    @contextmanager
    def there() -> Iterator[RunFolder]:
        with monkeypatch.context() as patched:
            patched.setattr(mirrors, "_mirrors", {})
            patched.setenv("MILP_RAY_CACHE", str(tmp_path / secrets.token_hex(4)))
            yield RunFolder.open(made.location)
            close_mirrors()

    return there


def all_of(run: RunFolder) -> dict[str, bytes]:
    """Everything of a run but who holds it: by name."""
    if mirror_of(run.root) is not None:
        store = objects_at(run.location)
        names = [found.name for found in store.list_below() if not found.name.startswith("lease/")]
        return {name: store.get(name) for name in names}
    names = [path for path in run.root.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(run.root)): path.read_bytes() for path in names}


@contextmanager
def failing(run: RunFolder) -> Iterator[list[str]]:
    """A session of a run that ends as no cluster can be had; what its error adds."""
    notes: list[str] = []
    with pytest.raises(ClusterError) as caught, _at_work(run, QUIET):
        yield notes
        raise ClusterError(NO_CLUSTER)
    notes += getattr(caught.value, "__notes__", [])


def work(run: RunFolder) -> None:
    """What a driver does that asks for trials and saves a memory."""
    log = EventLog(run.layout.events("u-a"))
    for kind in ("created", "asked", "told"):
        log.append({"event": kind})
    write_json(run.layout.memory("u-a") / "adapter_config.json", {})


def test_a_new_run_without_a_cluster_leaves_nothing_and_its_name_free(made: RunFolder) -> None:
    with failing(made) as notes:
        EventLog(made.layout.events("u-a")).append({"event": "created"})
        made.layout.tune.mkdir(exist_ok=True)
        (made.layout.tune / "tune.log").write_text("why")
    assert not notes, "there is nothing to resume"
    assert not is_run(made.location) and (mirror_of(made.root) is None or not all_of(made))
    assert mirror_of(made.root) is not None or not list(made.root.parent.iterdir())
    RunFolder.create(made.study, "f")


@pytest.mark.parametrize("left", ["events/u-a.jsonl", "memories/u-a/w.bin", "scores/u-a.json", "x"])
def test_whatever_is_more_than_a_beginning_is_kept(made: RunFolder, left: str) -> None:
    with failing(made) as notes:
        if left.startswith("events"):
            log = EventLog(made.layout.events("u-a"))
            log.append({"event": "created"})
            log.append({"event": "asked"})
        else:
            write_json(made.root / left, {})
    assert is_run(made.location) and left in all_of(made) and "milp-ray resume" in notes[0]


def test_a_run_that_another_driver_worked_on_is_kept(made: RunFolder, elsewhere: Elsewhere) -> None:
    """Between its making and this driver's lock, and although that one got no further than its
    first line."""
    with elsewhere() as other, other.lock():
        pass
    before = all_of(made)
    with failing(made) as notes:
        pass
    after = all_of(made)
    assert {*after} == {*before} and after["alias.key"] == before["alias.key"] and notes


def test_a_run_that_was_opened_is_kept(made: RunFolder, elsewhere: Elsewhere) -> None:
    with elsewhere() as other, failing(other) as notes:
        pass
    assert is_run(made.location) and notes


def test_what_another_driver_does_once_this_one_has_let_go_is_kept(
    made: RunFolder, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case that cost a run: the other one comes as soon as the lock is free."""
    lock = RunFolder.lock

    @contextmanager
    def then_the_other(self: RunFolder) -> Iterator[None]:
        try:
            with lock(self):
                yield
        finally:
            if self is made and is_run(made.location):
                with elsewhere() as other, lock(other):
                    work(other)

    write_json(made.root / "scores" / "u-a.json", {})  # so the run is not removed
    monkeypatch.setattr(RunFolder, "lock", then_the_other)
    with failing(made):
        pass
    close_mirrors()
    found = all_of(RunFolder.open(made.location))
    assert found["alias.key"] == made.key and found["events/u-a.jsonl"].count(b"\n") == 3


def test_a_driver_that_was_taken_over_removes_nothing(
    made: RunFolder, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (mirror := mirror_of(made.root)) is None:
        pytest.skip("a lock of the file system is not taken over")
    with failing(made):
        for found in mirror.objects.list_below("lease"):
            mirror.objects.delete(found.name)  # as somebody does who thinks that it is gone
        with elsewhere() as other, other.lock():
            work(other)
    found = all_of(made)
    assert found["alias.key"] == made.key and found["events/u-a.jsonl"].count(b"\n") == 3


def test_a_run_that_was_removed_or_replaced_is_not_worked_on(made: RunFolder) -> None:
    with failing(made):
        pass
    assert not is_run(made.location)
    with pytest.raises(RunBusyError, match="removed meanwhile"), made.lock():
        pass
    again = RunFolder.create(made.study, "f")
    before = all_of(again)
    with pytest.raises(RunBusyError, match="replaced by another"), made.lock():
        EventLog(made.layout.events("u-a")).append({"event": "created"})
    assert all_of(again) == before


def test_a_removal_that_was_killed_leaves_what_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.create(a_study(tmp_path), "f")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), run.lock(), monkeypatch.context() as patched:
        patched.setattr(creation.shutil, "rmtree", killed)  # type: ignore[attr-defined]
        run.remove_unused()
    assert not is_run(str(run.root)) and [path.suffix for path in tmp_path.iterdir()] == [".removed"]
    RunFolder.create(a_study(tmp_path), "f")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
