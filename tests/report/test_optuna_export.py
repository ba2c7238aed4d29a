"""A run's searches as Optuna studies: read back by Optuna itself, added to, and refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from milp_ray.errors import InstallError, RunFolderError, StorageError
from milp_ray.ids import POPULATION
from milp_ray.layout import SCORES
from milp_ray.report import optuna_export, optuna_tables
from milp_ray.report.optuna_export import Exported, export_study
from milp_ray.search.core.events import EventLog
from milp_ray.study.run_folder import RunFolder
from tests.report.runs import KEY, LAYERS, aliases, study_of
from tests.report.test_html_live import begun, held, search

COST = {"inject_seconds": 3.0, "eval_seconds": 1.0, "node": "0a1b2c3d", "ended_at": 1_900_000_000.5}


@pytest.fixture(params=["sqlite", "journal"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/x.db" if request.param == "sqlite" else str(tmp_path / "x.log")


def storage_of(store: str) -> Any:
    if "://" in store:
        return optuna.storages.RDBStorage(store)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(store))


def studies(store: str) -> dict[str, optuna.Study]:
    storage = storage_of(store)
    names = optuna.get_all_study_names(storage)
    return {name: optuna.load_study(study_name=name, storage=storage) for name in names}


def new(found: Exported) -> tuple[int, int, int]:
    return found.written.studies, found.written.trials, found.written.ended


def tell(folder: RunFolder, alias: str, events: Sequence[dict[str, Any]]) -> None:
    log = EventLog(folder.layout.events(alias))
    for event in events:
        log.append(event)


def told(number: int, **beside: Any) -> dict[str, Any]:
    values = {"loss": 2.5 - 0.01 * number, "rouge_l": 0.2 + 0.01 * number}
    return {"event": "told", "id": number, "values": values, **beside}


def facts(trial: FrozenTrial) -> tuple[Any, ...]:
    times = (trial.datetime_start, trial.datetime_complete)
    return trial.number, trial.state, trial.values, trial.params, trial.distributions, trial.user_attrs, times


def test_optuna_reads_every_search_with_its_trials(tmp_path: Path, store: str) -> None:
    folder, users = begun(tmp_path / "runs"), aliases(3)
    search(folder, users[0], 3, fails=1)
    search(folder, users[1], 2)
    scores = {"samples": 9, "models": {"base": {"loss": 2.5, "rouge_1": 0.2}, "own": {"loss": 2.4}}}
    (folder.root / SCORES).mkdir()
    folder.layout.scores(users[0]).write_text(json.dumps(scores))
    found = export_study(folder.root, store)
    assert new(found) == (2, 6, 0) and (found.studies, found.trials) == (2, 6)
    read = studies(store)
    assert set(read) == {f"s/{users[0]}", f"s/{users[1]}"}
    study = read[f"s/{users[0]}"]
    assert [one.name for one in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert study.metric_names == ["loss", "rouge_l"]
    attributes = study.user_attrs
    assert attributes["user"] == users[0] and attributes["no_memory"] == {"loss": 2.6, "rouge_l": 0.1}
    assert attributes["front"] == [3] and attributes["chosen"] == 3
    assert attributes["test_base"] == {"loss": 2.5, "rouge_1": 0.2} and attributes["test_own"] == {
        "loss": 2.4
    }
    trials = study.trials
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert trials[0].user_attrs["reason"] == "simulated failure" and trials[0].values is None
    assert trials[2].values == pytest.approx([2.48, 0.22])
    assert [trial.number for trial in study.best_trials] == [3]
    logged = json.loads(folder.layout.events(users[0]).read_text().splitlines()[2])["proposals"]
    for trial, proposal in zip(trials, logged, strict=False):
        assert trial.user_attrs["placement"] == proposal["placement"]
        assert trial.params["rank"] == proposal["rank"] and trial.params["num_loras"] == proposal["num_loras"]


def test_all_gates_are_of_one_kind_and_a_count_is_a_range(tmp_path: Path) -> None:
    """An importance rates a gate that is a whole number three times as high as a category."""
    folder = begun(tmp_path / "runs")
    search(folder, aliases(1)[0], 2)
    export_study(folder.root, store := f"sqlite:///{tmp_path}/x.db")
    (study,) = studies(store).values()
    found = study.trials[0].distributions
    gates = {name: kind for name, kind in found.items() if name.startswith("gate_")}
    assert len(gates) == LAYERS and set(gates.values()) == {CategoricalDistribution((0, 1))}
    assert found["rank"] == CategoricalDistribution((8, 16, 32))
    assert found["num_loras"] == IntDistribution(1, LAYERS)


def test_times_are_those_of_the_log_and_else_follow_each_other(tmp_path: Path, store: str) -> None:
    folder, (alias, *_) = begun(tmp_path / "runs"), aliases(1)
    Search(folder, alias).ask(3)
    tell(folder, alias, [told(0, cost=COST), told(1, cost={"inject_seconds": 5.0})])
    export_study(folder.root, store)
    (study,) = studies(store).values()
    first, second, third = study.trials
    assert first.datetime_complete is not None and second.datetime_start is not None
    assert first.datetime_complete.timestamp() == pytest.approx(COST["ended_at"])
    assert first.duration is not None and first.duration.total_seconds() == pytest.approx(4.0)
    assert second.datetime_start == first.datetime_complete
    assert second.duration is not None and second.duration.total_seconds() == pytest.approx(5.0)
    assert "times" in second.user_attrs and "times" not in first.user_attrs
    assert third.state is TrialState.RUNNING and third.datetime_complete is None
    assert first.user_attrs["node"] == "0a1b2c3d" and first.user_attrs["inject_seconds"] == 3.0


class Search:
    """A search's log, to be appended to without an engine that tells at once."""

    def __init__(self, folder: RunFolder, alias: str) -> None:
        self._folder, self._alias = folder, alias

    def ask(self, count: int) -> None:
        from milp_ray.config.objectives import objectives_on
        from milp_ray.memory.space import MemorySpace
        from milp_ray.search import Engine
        from tests.report.test_html_live import NAMES, SizedByRank

        engine = Engine(
            MemorySpace(LAYERS, LAYERS, (8, 16, 32)),
            objectives_on(SizedByRank(), NAMES),
            initial=4,
            surrogate="random",
            log=self._folder.layout.events(self._alias),
        )
        engine.ask(count)


def test_a_second_export_adds_what_is_new_and_ends_what_ran(tmp_path: Path, store: str) -> None:
    folder, users = begun(tmp_path / "runs"), aliases(2)
    Search(folder, users[0]).ask(3)
    tell(folder, users[0], [told(0)])
    assert new(export_study(folder.root, store)) == (1, 3, 0)
    before = facts(studies(store)[f"s/{users[0]}"].trials[0])
    assert new(export_study(folder.root, store)) == (0, 0, 0)
    failed = {"event": "failed", "id": 1, "reason": "out of memory"}
    tell(folder, users[0], [told(2, cost=COST), failed])
    search(folder, users[0], 2)
    search(folder, users[1], 1)
    assert new(export_study(folder.root, store)) == (1, 3, 2)
    assert new(export_study(folder.root, store)) == (0, 0, 0)
    read = studies(store)
    assert len(read) == 2
    study = read[f"s/{users[0]}"]
    assert facts(study.trials[0]) == before
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert study.trials[2].values == pytest.approx([2.48, 0.22])
    assert study.trials[2].user_attrs["node"] == "0a1b2c3d"
    assert study.trials[1].user_attrs["reason"] == "out of memory"
    assert study.user_attrs["front"] == [4]


def test_tables_filled_in_bulk_are_what_optuna_writes_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, users = begun(tmp_path / "runs"), aliases(3)
    for alias in users:
        search(folder, alias, 3, fails=1)
    Search(folder, users[2]).ask(1)
    bulk, slow = f"sqlite:///{tmp_path}/bulk.db", f"sqlite:///{tmp_path}/slow.db"
    export_study(folder.root, bulk)
    monkeypatch.setattr(optuna_tables, "_SCHEMA", 99)  # another Optuna's
    export_study(folder.root, slow)
    one, other = studies(bulk), studies(slow)
    assert list(one) == list(other)
    for name in one:
        assert [facts(trial) for trial in one[name].trials] == [facts(trial) for trial in other[name].trials]
        assert one[name].user_attrs == other[name].user_attrs
        assert one[name].metric_names == other[name].metric_names
        assert one[name].directions == other[name].directions


def test_an_export_that_was_killed_is_gone_on_with(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, users = begun(tmp_path / "runs", users=4), aliases(4)
    for alias in users:
        search(folder, alias, 3)
    with monkeypatch.context() as patch:
        found = list(optuna_export.plain_studies(folder, []))

        def dies(*_: object) -> Any:
            yield from found[:2]
            raise KeyboardInterrupt

        patch.setattr(optuna_export, "plain_studies", dies)
        patch.setattr(optuna_tables.Tables, "batch", 1)
        with pytest.raises(KeyboardInterrupt):
            export_study(folder.root, store)
    assert len(studies(store)) == 2
    assert new(export_study(folder.root, store)) == (2, 6, 0)
    assert [len(study.trials) for study in studies(store).values()] == [3, 3, 3, 3]


def test_another_runs_study_is_refused_and_left_as_it_is(tmp_path: Path, store: str) -> None:
    alias = aliases(1)[0]
    one, other = begun(tmp_path / "one"), begun(tmp_path / "other")
    other.meta["created"] = "2026-01-01T00:00:00+0000"
    other.layout.meta_file.write_text(json.dumps(other.meta))
    search(one, alias, 3)
    search(other, alias, 4)
    export_study(one.root, store)
    before = [facts(trial) for trial in studies(store)[f"s/{alias}"].trials]
    with pytest.raises(RunFolderError, match="of another run") as caught:
        export_study(other.root, store)
    assert "another store" in str(caught.value)
    assert [facts(trial) for trial in studies(store)[f"s/{alias}"].trials] == before


def test_a_study_of_somebody_elses_is_refused(tmp_path: Path, store: str) -> None:
    folder, alias = begun(tmp_path / "runs"), aliases(1)[0]
    search(folder, alias, 3)
    theirs = optuna.create_study(storage=storage_of(store), study_name=f"s/{alias}")
    theirs.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(RunFolderError, match="of another run"):
        export_study(folder.root, store)


def test_a_study_that_was_searched_further_elsewhere_is_refused(tmp_path: Path, store: str) -> None:
    folder, alias = begun(tmp_path / "runs"), aliases(1)[0]
    search(folder, alias, 3)
    export_study(folder.root, store)
    studies(store)[f"s/{alias}"].add_trial(optuna.create_trial(values=[1.0, 2.0]))
    search(folder, alias, 2)
    with pytest.raises(RunFolderError, match="not the run's"):
        export_study(folder.root, store)


def test_a_run_that_goes_on_is_exported_as_far_as_it_is_and_left_as_it_is(tmp_path: Path) -> None:
    folder, users = begun(tmp_path / "runs"), aliases(2)
    held(folder)
    search(folder, users[0], 3)
    search(folder, users[1], 3)
    with folder.layout.events(users[0]).open("a") as log:
        log.write('{"event":"told","id":')
    damaged = folder.layout.events(users[1])
    damaged.write_text(damaged.read_text().replace('"told"', '"TOLD"', 1))
    before = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    found = export_study(folder.root, f"sqlite:///{tmp_path}/x.db")
    assert found.held and found.unreadable == (users[1],) and found.studies == 1
    lines = "\n".join(found.lines())
    assert "a driver holds the run" in lines and users[1] in lines
    assert {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()} == before


def test_a_populations_trial_says_what_its_users_measured(tmp_path: Path) -> None:
    users = aliases(2)
    plan = {"trials": 10, "initial": 4, "unit": "population", "users_per_trial": 2, "surrogate": "random"}
    folder = RunFolder.create(study_of(tmp_path / "r", search=plan), dict.fromkeys(users, "f" * 32), KEY)
    Search(folder, POPULATION).ask(1)
    by_user = {alias: {"loss": 2.0, "rouge_l": 0.1} for alias in users}
    tell(folder, POPULATION, [told(0, by_user=by_user)])
    export_study(folder.root, store := f"sqlite:///{tmp_path}/x.db")
    (study,) = studies(store).values()
    assert study.study_name == "s/population" and study.trials[0].user_attrs["by_user"] == by_user


@pytest.mark.parametrize(
    ("store", "words"),
    [
        ("sqlite:////nowhere/at/all/x.db", "unable to open database file"),
        ("/nowhere/at/all/x.log", "no such folder"),
    ],
)
def test_a_store_that_cannot_be_reached_is_told_in_its_own_words(
    tmp_path: Path, store: str, words: str
) -> None:
    folder = begun(tmp_path)
    search(folder, aliases(1)[0], 1)
    with pytest.raises(StorageError, match=words) as caught:
        export_study(folder.root, store)
    assert store in str(caught.value) and "export again" in str(caught.value)


def test_a_password_is_never_told(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    search(folder, aliases(1)[0], 1)
    with pytest.raises((StorageError, InstallError)) as caught:
        export_study(folder.root, "mysql+pymysql://me:opensesame@127.0.0.1:1/x")
    assert "opensesame" not in str(caught.value) and "me:***@" in str(caught.value)


@pytest.mark.parametrize(
    ("first", "word"), [(b"SQLite format 3\0etc\n", "sqlite:///"), (b"hello\n", "another")]
)
def test_a_file_of_another_kind_is_no_journal(tmp_path: Path, first: bytes, word: str) -> None:
    folder = begun(tmp_path / "runs")
    search(folder, aliases(1)[0], 1)
    (tmp_path / "x.db").write_bytes(first)
    with pytest.raises(RunFolderError, match="of another kind") as caught:
        export_study(folder.root, str(tmp_path / "x.db"))
    assert word in str(caught.value)
    assert (tmp_path / "x.db").read_bytes() == first


def test_what_is_missing_is_told_before_a_store_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunFolderError, match="no such run folder"):
        export_study(tmp_path / "none", f"sqlite:///{tmp_path}/x.db")
    folder = begun(tmp_path)
    with pytest.raises(RunFolderError, match="no trial yet"):
        export_study(folder.root, f"sqlite:///{tmp_path}/x.db")
    assert not (tmp_path / "x.db").exists()
    search(folder, aliases(1)[0], 1)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InstallError, match=r"milp_ray\[optuna\]"):
        export_study(folder.root, f"sqlite:///{tmp_path}/x.db")
