"""The run folder: made whole or not at all, one driver at a time, and nothing raw in it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from milp_ray.config import Study
from milp_ray.config.loading import load_study
from milp_ray.errors import RunFolderError, StorageError
from milp_ray.study.run_folder import RunFolder


def a_study(storage: Path, **data: object) -> Study:
    raw = {
        "name": "s",
        "model": {"path": "m"},
        "data": {"path": "d", **data},
        "storage": {"path": str(storage)},
    }
    return Study.model_validate(raw)


def test_create_then_open(tmp_path: Path) -> None:
    made = RunFolder.create(a_study(tmp_path), "f" * 64)
    again = RunFolder.open(tmp_path / "s")
    assert (again.study, again.key, again.fingerprint) == (made.study, made.key, "f" * 64)
    assert oct((again.root / "alias.key").stat().st_mode & 0o777) == "0o600"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert load_study(again.root / "study.yaml") == made.study


def test_raw_ids_are_frozen_as_aliases(tmp_path: Path) -> None:
    folder = RunFolder.create(a_study(tmp_path, users=("alice@example.org",)), "f")
    assert folder.study.data.users == (folder.alias("alice@example.org"),)
    assert not any(b"alice" in path.read_bytes() for path in folder.root.iterdir())


def test_an_existing_run_is_refused_with_the_remedy(tmp_path: Path) -> None:
    RunFolder.create(a_study(tmp_path), "f")
    with pytest.raises(RunFolderError, match="milp-ray resume"):
        RunFolder.create(a_study(tmp_path), "f")
    (tmp_path / "t").write_text("a file")
    other = a_study(tmp_path).model_copy(update={"name": "t"})
    with pytest.raises(RunFolderError, match="in the way"):
        RunFolder.create(other, "f")


def test_unwritable_storage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"storage\.path"):
        RunFolder.create(a_study(tmp_path / "file"), "f")


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fdopen", full)
    with pytest.raises(StorageError, match="No space left"):
        RunFolder.create(a_study(tmp_path), "f")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["run.json", "alias.key"])
def test_damage_is_said(tmp_path: Path, damage: str) -> None:
    RunFolder.create(a_study(tmp_path), "f")
    (tmp_path / "s" / damage).write_text("{")
    with pytest.raises((StorageError, RunFolderError), match="damaged"):
        RunFolder.open(tmp_path / "s")


@pytest.mark.parametrize("where", ["absent", "."])
def test_what_is_no_run_folder(tmp_path: Path, where: str) -> None:
    with pytest.raises(RunFolderError, match="run folder"):
        RunFolder.open(tmp_path / where)


def _hold(
    path: Path, ready: multiprocessing.synchronize.Event, go: multiprocessing.synchronize.Event
) -> None:
    with RunFolder.open(path).lock():
        ready.set()
        go.wait(30)


def test_one_driver_at_a_time_even_after_a_kill(tmp_path: Path) -> None:
    folder = RunFolder.create(a_study(tmp_path), "f")
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(folder.root, ready, go))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(RunFolderError, match="another milp-ray"), folder.lock():
        pass
    holder.kill()
    holder.join()
    with folder.lock():
        pass


def test_another_study_is_told_from_the_runs_own(tmp_path: Path) -> None:
    study = a_study(tmp_path, users=("ann", "bob"))
    folder = RunFolder.create(study, "f" * 64)
    assert folder.differences(study) == []
    elsewhere = study.model_copy(update={"ray": study.ray.model_copy(update={"max_concurrent": 3})})
    assert folder.differences(elsewhere) == []
    other = a_study(tmp_path, users=("ann", "eve")).model_copy(update={"seed": 9})
    found = {problem.where: problem for problem in folder.differences(other)}
    assert set(found) == {"seed", "data.users"}
    assert "is 9, and was 0" in found["seed"].fact and "eve" not in str(found["data.users"])
