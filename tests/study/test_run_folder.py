"""The run folder: made whole or not at all, one driver at a time, and nothing raw in it."""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from rich.console import Console

from milp_ray.config import Study
from milp_ray.config.loading import load_study
from milp_ray.errors import RunFolderError, StorageError, StudyError
from milp_ray.memory.adapter_notes import check_content, note_of
from milp_ray.memory.adapters import write_adapter
from milp_ray.search.core.events import EventLog
from milp_ray.storage import atomic_write, close_mirrors, stale_drafts, write_folder, write_json
from milp_ray.storage.objects import objects_at
from milp_ray.study.driver import _at_work
from milp_ray.study.fetch import fetch
from milp_ray.study.location import is_run, run_location
from milp_ray.study.run_folder import RunFolder


def a_study(storage: Path, **data: object) -> Study:
    raw = {
        "name": "s",
        "model": {"path": "m"},
        "data": {"path": "d", **data},
        "storage": {"path": str(storage)},
    }
    return Study.model_validate(raw)


@pytest.mark.parametrize("error", [StorageError("no space"), KeyError("a bug"), KeyboardInterrupt()])
def test_whatever_ends_a_run_tells_how_to_go_on(tmp_path: Path, error: BaseException) -> None:
    folder = RunFolder.create(a_study(tmp_path), "f" * 64)
    with pytest.raises(type(error)) as raised, _at_work(folder, Console(quiet=True)):
        raise error
    assert any(f"milp-ray resume {folder.location}" in note for note in raised.value.__notes__)


def test_create_then_open(tmp_path: Path) -> None:
    made = RunFolder.create(a_study(tmp_path), "f" * 64)
    again = RunFolder.open(tmp_path / "s")
    assert (again.study, again.key, again.fingerprint) == (made.study, made.key, "f" * 64)
    assert oct((again.root / "alias.key").stat().st_mode & 0o777) == "0o600"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert load_study(again.root / "study.yaml") == made.study


def test_a_run_of_the_first_format_goes_on_by_its_rules_of_texts(tmp_path: Path) -> None:
    made = RunFolder.create(a_study(tmp_path), "f")
    frozen = made.root / "study.yaml"
    assert "text_rules: 2" in frozen.read_text()
    frozen.write_text(frozen.read_text().replace("  text_rules: 2\n", ""))
    meta = json.loads((made.root / "run.json").read_text())
    write_json(made.root / "run.json", meta | {"format": 1})
    assert RunFolder.open(made.root).study.data.text_rules == 1
    again = RunFolder.of(a_study(tmp_path))  # whose author knows of no rules: no difference
    assert again is not None and again.study.data.text_rules == 1
    write_json(made.root / "run.json", meta | {"format": 99})
    with pytest.raises(RunFolderError, match="format 99"):
        RunFolder.open(made.root)


@pytest.mark.parametrize(
    ("readable_by", "folder", "file"), [("owner", 0o700, 0o600), ("group", 0o2750, 0o640)]
)
def test_a_new_run_is_for_its_owner_or_its_group_alone(
    tmp_path: Path, readable_by: str, folder: int, file: int
) -> None:
    tmp_path.chmod(0o755)
    study = a_study(tmp_path)
    storage = study.storage.model_copy(update={"readable_by": readable_by})
    made = RunFolder.create(study.model_copy(update={"storage": storage}), "f")
    EventLog(made.layout.events("u-" + "a" * 13)).append({"event": "x"})
    write_folder(made.layout.memory("u-" + "a" * 13), lambda draft: (draft / "weights").write_text("w"))
    write_json(made.layout.scores("u-" + "a" * 13), {})
    with made.lock():
        for path in (made.root, *made.root.rglob("*")):
            wanted = 0o600 if path.name == "alias.key" else folder if path.is_dir() else file
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    assert RunFolder.of(study) is not None, "who may read it is no part of a study"


def test_a_run_that_was_opened_to_others_goes_on_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    run = RunFolder.create(a_study(tmp_path), "f")
    run.root.chmod(0o755)  # as earlier versions made it
    write_folder(run.layout.memory("u-" + "a" * 13), lambda draft: (draft / "weights").write_text("w"))
    memory = run.layout.memory("u-" + "a" * 13)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (memory, memory / "weights")] == [0o755, 0o644]


def test_a_hub_model_stays_at_its_commit(tmp_path: Path) -> None:
    commit, study = "1" * 40, a_study(tmp_path)
    made = RunFolder.create(study, "f", base={"commit": commit})
    again = RunFolder.of(study)  # whose revision is still null: no difference
    assert again is not None and again.study == made.study and again.study.model.revision == commit
    assert RunFolder.open(made.root).study.model.revision is None, "as it was asked for"
    moved = study.model_copy(update={"model": study.model.model_copy(update={"revision": "v2"})})
    with pytest.raises(StudyError, match=r"model\.revision: is 'v2', and was None"):
        RunFolder.of(moved)


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
    path: Path | str, ready: multiprocessing.synchronize.Event, go: multiprocessing.synchronize.Event
) -> None:
    with RunFolder.open(path).lock():
        ready.set()
        go.wait(30)


def test_one_driver_at_a_time_even_after_a_kill(tmp_path: Path) -> None:
    folder = RunFolder.create(a_study(tmp_path), "f")
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    owner = context.Process(target=_hold, args=(folder.root, ready, go))
    owner.start()
    assert ready.wait(30)
    with pytest.raises(RunFolderError, match="another milp-ray"), folder.lock():
        pass
    owner.kill()
    owner.join()
    with folder.lock():
        pass


def test_what_killed_drivers_left_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stale_drafts, "STALE_SECONDS", 0.0)
    folder = RunFolder.create(a_study(tmp_path), "f")
    kept = [
        folder.layout.tune / "tune.log",
        folder.layout.adapters("u-a") / "t0007" / "adapter_config.json",
        folder.layout.memory("u-a") / "adapter_config.json",  # replaced by .old, whose writer was killed
        folder.layout.scores("u-a"),
    ]
    left = [
        folder.layout.tune / "search-20261126-093000-3f9c2a" / "experiment_state.json",
        folder.root / "train" / "s-final" / "x",
        folder.layout.adapters("u-a") / ".t0008.41.tmp" / "adapter_config.json",
        folder.root / "memories" / ".u-a.41.tmp" / "adapter_config.json",
        folder.root / "scores" / ".u-b.json.41.tmp",
        folder.root / "experiments" / ".u-a.json.41.tmp",
        folder.root / "tables" / ".trials.csv.41.tmp",
        folder.root / "plots" / ".front-u-a.png.41.tmp",
    ]
    for path in kept + left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    folder.layout.memory("u-a").rename(folder.layout.memory("u-a").with_name(".u-a.41.old"))
    before = sorted(folder.root.iterdir())
    with folder.lock():
        there = {path for path in folder.root.rglob("*") if path.is_file()}
        assert {path for path in there if path.parent != folder.root / "lease"} == {
            *kept,
            *(folder.root / name for name in ("study.yaml", "alias.key", "run.json", "session.json", "lock")),
        }  # fmt: skip
    made = [folder.root / "session.json", folder.root / "lease"]
    assert sorted([*before, *made]) == sorted([*folder.root.iterdir(), folder.root / "train"])


def test_a_creation_that_was_killed_leaves_its_draft_until_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, young_of_another, someones = ".s-abc.draft", ".s2-abc.draft", ".s-notes.draft"
    for name, file in ((killed, "alias.key"), (young_of_another, "alias.key"), (someones, "letter.txt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("")
    shutil.rmtree(RunFolder.create(a_study(tmp_path), "f").root)
    assert len(list(tmp_path.iterdir())) == 3, "younger than a minute: somebody may be making it"
    monkeypatch.setattr(stale_drafts, "STALE_SECONDS", 0.0)
    RunFolder.create(a_study(tmp_path), "f")
    assert {path.name for path in tmp_path.iterdir()} == {"s", young_of_another, someones}


def test_a_new_run_is_on_the_disk_before_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    RunFolder.create(a_study(tmp_path), "f")
    draft = synced[0].parent
    assert synced == [*(draft / name for name in ("study.yaml", "alias.key", "run.json")), draft, tmp_path]


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


def a_memory_of(user: str) -> Callable[[Path], None]:
    def write(draft: Path) -> None:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            (draft / name).write_bytes(b"{}")
        (draft / "memory.json").write_bytes(note_of(draft, "0:4", user))

    return write


# At a URL.


@pytest.fixture(params=("s3", "memory"))
def url(request: pytest.FixtureRequest, own_mirrors: None) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/runs"
    return f"memory://{secrets.token_hex(6)}/runs"


@pytest.fixture
def on_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Forgets all that this machine has of any run."""

    def move() -> None:
        close_mirrors()
        monkeypatch.setenv("MILP_RAY_CACHE", str(tmp_path / secrets.token_hex(4)))

    return move


def names_at(url: str) -> list[str]:
    return [found.name for found in objects_at(url).list_below()]


def at(url: str, **data: object) -> Study:
    study = a_study(Path("x"), **data)
    return study.model_copy(update={"storage": study.storage.model_copy(update={"path": url})})


def test_a_run_at_a_url_is_opened_on_another_machine(
    url: str, on_another_machine: Callable[[], None]
) -> None:
    made = RunFolder.create(at(url, users=("alice@example.org",)), "f" * 64)
    assert made.location == f"{url}/s" == run_location(made.study) and is_run(made.location)
    assert names_at(f"{url}/s") == ["alias.key", "lease/last", "run.json", "study.yaml"]
    assert not any(b"alice" in objects_at(f"{url}/s").get(name) for name in names_at(f"{url}/s"))
    on_another_machine()
    again = RunFolder.open(f"{url}/s/")
    assert (again.study, again.key, again.fingerprint) == (made.study, made.key, "f" * 64)
    assert again.root != made.root and again.location == made.location
    assert (again.root / "alias.key").stat().st_mode & 0o077 == 0


def test_an_existing_run_at_a_url_is_refused(url: str, on_another_machine: Callable[[], None]) -> None:
    RunFolder.create(at(url), "f")
    on_another_machine()
    with pytest.raises(RunFolderError, match=f"milp-ray resume {url}/s "):
        RunFolder.create(at(url), "f")
    with pytest.raises(RunFolderError, match="no such run folder"):
        RunFolder.open(f"{url}/t")
    objects_at(f"{url}/t").put("data.csv", b"1")
    with pytest.raises(RunFolderError, match="in the way"):
        RunFolder.create(at(url).model_copy(update={"name": "t"}), "f")


def test_a_creation_that_was_cut_off_is_in_nobodys_way(url: str) -> None:
    objects_at(f"{url}/s").put("study.yaml", b"half")
    objects_at(f"{url}/s").put("alias.key", b"half")
    assert not is_run(f"{url}/s")
    made = RunFolder.create(at(url), "f")
    assert RunFolder.open(made.location).key == made.key


def test_logs_scores_and_memories_reach_the_next_driver(
    url: str, on_another_machine: Callable[[], None]
) -> None:
    folder = RunFolder.create(at(url), "f")
    with folder.lock():
        log = EventLog(folder.layout.events("u-a"))
        log.append({"event": "created"})
        log.append({"event": "told", "id": 0})
        write_json(folder.layout.scores("u-a"), {})
        write_folder(
            folder.layout.memory("u-a"),
            lambda draft: [(draft / name).write_bytes(b"{}") for name in ("adapter_config.json", "w.bin")],
            commit_marker="adapter_config.json",
        )
        write_folder(folder.layout.adapters("u-a") / "t0007", lambda draft: (draft / "x").write_bytes(b"1"))
        folder.layout.tune.mkdir()
        (folder.layout.tune / "tune.log").write_text("why")
    assert "adapters/u-a/t0007/x" in names_at(folder.location) and "tune/tune.log" in names_at(
        folder.location
    )
    on_another_machine()
    again = RunFolder.open(folder.location)
    with again.lock():
        assert len(EventLog(again.layout.events("u-a")).events) == 2
        assert again.layout.scores("u-a").exists()
        assert [path.name for path in again.layout.memory("u-a").iterdir()] == ["adapter_config.json"]
        assert not (again.root / "adapters").exists(), "a driver needs no weights"


def test_one_driver_at_a_time_at_a_url(s3: str) -> None:
    folder = RunFolder.create(at(f"{s3}/runs"), "f")
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    owner = context.Process(target=_hold, args=(folder.location, ready, go))
    owner.start()
    assert ready.wait(60)
    with pytest.raises(RunFolderError, match="another milp-ray is working"), folder.lock():
        pass
    owner.kill()
    owner.join()
    with folder.lock():
        pass


def test_a_bucket_that_is_not_there(s3: str) -> None:
    with pytest.raises(StorageError, match="make the bucket first"):
        RunFolder.create(at("s3://not-there-at-all/runs"), "f")


ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def an_adapter(folder: Path) -> None:
    """Two modules of ranks 4 and 2, and a file beside them."""
    names = ("m.0.up", "m.1.up")
    config = LoraConfig(
        r=4, lora_alpha=4, target_modules=list(names), rank_pattern={"m.1.up": 2}, alpha_pattern={"m.1.up": 2}
    )
    config.base_model_name_or_path = "/private/models/the-base"
    write_adapter(
        folder,
        config,
        {
            f"base_model.model.{name}.{part}.weight": torch.ones((rank, 3) if part == "lora_A" else (3, rank))
            for name, rank in zip(names, (4, 2), strict=True)
            for part in ("lora_A", "lora_B")
        },
    )
    (folder / "beside.md").write_text("how it is prompted")
    (folder / "memory.json").write_bytes(note_of(folder, "0:4,1:2", "u-a"))


def test_tables_and_plots_are_fetched_whole_or_not_at_all(
    url: str, tmp_path: Path, on_another_machine: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(at(url), "f")
    target = tmp_path / "deep" / "copies"
    with pytest.raises(RunFolderError, match="no tables yet"):
        fetch(folder.location, target)
    write_json(folder.layout.table("trials.json"), {})
    write_json(folder.layout.plot("front"), {})
    write_folder(folder.layout.memory("u-a"), an_adapter, commit_marker="adapter_config.json")
    on_another_machine()
    assert fetch(folder.location, target) == 2
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*.*")) == [
        "plots/front.png",
        "tables/trials.json",
    ]
    with pytest.raises(RunFolderError, match="something already"):
        fetch(folder.location, target)
    report = RunFolder.open(folder.location).layout.report
    atomic_write(report, lambda draft: draft.write_text("<html>", encoding="utf-8"))
    on_another_machine()
    assert fetch(folder.location, tmp_path / "reported") == 3
    assert (tmp_path / "reported" / "report.html").read_text(encoding="utf-8") == "<html>"
    assert fetch(folder.location, tmp_path / "all", memories=True, one_rank=True) == 7
    memory = tmp_path / "all" / "memories" / "u-a"
    assert {path.name for path in memory.iterdir()} == {*ADAPTER, "beside.md", "memory.json"}
    check_content(memory, placement="0:4,1:2", user="u-a")
    config = json.loads((memory / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == ("the-base", 4)
    assert "rank_pattern" not in config
    assert not list((tmp_path / "all").rglob("*.key"))

    memory = RunFolder.open(folder.location).layout.memory("u-a")
    write_folder(memory, a_memory_of("u-b"), commit_marker="adapter_config.json")
    with pytest.raises(RunFolderError, match="it is of user u-b"):
        fetch(folder.location, tmp_path / "mixed", memories=True)
    assert not (tmp_path / "mixed").exists()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(StorageError, match="No space left"):
        fetch(folder.location, tmp_path / "full")
    assert not (tmp_path / "full").exists() and not list(tmp_path.glob(".full*"))


def test_a_run_in_a_folder_is_fetched_alike(tmp_path: Path) -> None:
    folder = RunFolder.create(a_study(tmp_path), "f")
    write_json(folder.layout.table("trials.json"), {})
    (folder.root / "tables" / ".trials.json.1.tmp").write_text("half")
    tmp_path.chmod(0o755)
    assert fetch(folder.root, tmp_path / "copies") == 1
    copies = [tmp_path / "copies", *(tmp_path / "copies").rglob("*")]
    assert not any(path.stat().st_mode & 0o077 for path in copies), "for whoever fetched them alone"
    write_folder(folder.layout.memory("u-a"), an_adapter, commit_marker="adapter_config.json")
    (folder.layout.memory("u-a") / ".half.1.tmp").write_text("half")
    assert fetch(folder.root, tmp_path / "more", memories=True) == 5
    config = json.loads((tmp_path / "more" / "memories" / "u-a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "the-base" and config["rank_pattern"] == {"m.1.up": 2}
    assert "/private" in (folder.layout.memory("u-a") / "adapter_config.json").read_text()
