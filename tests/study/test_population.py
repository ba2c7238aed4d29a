"""A population: users in cohorts, summaries from event logs, engines only while they are at
work."""

from __future__ import annotations

import gc
import io
import weakref
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from milp_ray.config.models import (
    DataSettings,
    MemorySettings,
    ModelSettings,
    SearchSettings,
    Study,
)
from milp_ray.data.records import UserSplit
from milp_ray.errors import RunFolderError, StorageError
from milp_ray.memory.adapter_notes import NOTE, note_of
from milp_ray.memory.architectures import architecture_of
from milp_ray.memory.space import space_from
from milp_ray.report.console import user_view
from milp_ray.study.inputs import Inputs, Users
from milp_ray.study.population import Population, Summary
from milp_ray.study.results import write_tables
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.tables import read_table
from milp_ray.trial.records import TrialCost, TrialTimes

ALIASES = tuple(f"u-{letter * 13}" for letter in "abcde")


def population_of(
    root: Path,
    cohort: int | None = 2,
    trials: int = 3,
    layers: int = 4,
    memory: MemorySettings | None = None,
    **search: Any,
) -> tuple[Population, RunFolder, Inputs]:
    config = SimpleNamespace(
        model_type="llama", num_hidden_layers=layers, hidden_size=128, intermediate_size=256,
        vocab_size=99, max_position_embeddings=512,
    )  # fmt: skip
    study = Study(
        name="x",
        model=ModelSettings(path="x"),
        data=DataSettings(path="x"),
        memory=memory or MemorySettings(),
        search=SearchSettings(trials=trials, initial=trials, surrogate="random", cohort=cohort, **search),
    )
    architecture = architecture_of(config)
    splits = {alias: UserSplit(alias, (), (), (), (), 0, 0) for alias in ALIASES}
    space = space_from(study.memory, architecture.num_layers, architecture.width)
    inputs = Inputs(Users(splits, {}, {}, ""), architecture, space)
    folder = RunFolder(root, study, b"", {})
    return Population(folder, inputs), folder, inputs


def search(population: Population, alias: str, told: int) -> None:
    with population.opened([alias]) as engines:
        engine = engines[alias]
        for proposal in engine.ask(told):
            engine.tell(proposal.id, {"loss": 2.0 - 0.1 * proposal.id, "rouge_l": 0.1})
        engine.set_reference({"loss": 2.5, "rouge_l": 0.1})


def test_cohorts_are_the_same_groups_in_every_session(tmp_path: Path) -> None:
    population, _, _ = population_of(tmp_path)
    assert population.cohorts() == [ALIASES[:2], ALIASES[2:4], ALIASES[4:]]
    search(population, ALIASES[0], 3)
    assert population_of(tmp_path)[0].cohorts() == population.cohorts()
    assert population_of(tmp_path, None)[0].cohorts() == [ALIASES]
    assert [len(c) for c in population_of(tmp_path, None, 2500)[0].cohorts()] == [2, 2, 1]


def test_users_that_run_cold_are_in_cohorts_of_their_own(tmp_path: Path) -> None:
    def cohorts(transfer_users: int, cohort: int | None = 2) -> list[tuple[str, ...]]:
        words: dict[str, Any] = {"transfer": "seeds", "transfer_users": transfer_users}
        return population_of(tmp_path, cohort, **words)[0].cohorts()

    assert cohorts(1) == [ALIASES[:1], ALIASES[1:3], ALIASES[3:]]
    assert cohorts(3) == [ALIASES[:2], ALIASES[2:3], ALIASES[3:]]
    assert cohorts(3, None) == [ALIASES[:3], ALIASES[3:]] and cohorts(9, None) == [ALIASES]


def test_summaries_come_from_the_event_logs(tmp_path: Path) -> None:
    population, _, _ = population_of(tmp_path)
    assert population.summary(ALIASES[0]) == Summary() and not list(tmp_path.rglob("*.jsonl"))
    search(population, ALIASES[0], 3)
    search(population, ALIASES[1], 2)
    for seen in (population, population_of(tmp_path)[0]):
        first, second = seen.summary(ALIASES[0]), seen.summary(ALIASES[1])
        assert (first.done, first.failed, first.over) == (3, 0, True) and seen.finished(ALIASES[0])
        assert first.best == pytest.approx({"loss": 1.8, "rouge_l": 0.1})
        assert first.chosen is not None and dict(first.reference or {}) == {"loss": 2.5, "rouge_l": 0.1}
        assert second.done == 2 and not second.over and not seen.finished(ALIASES[1])
        assert set(seen.chosen()) == set(ALIASES[:2])


def test_the_table_says_what_trials_took_as_far_as_logs_know(tmp_path: Path) -> None:
    population, folder, inputs = population_of(tmp_path)
    search(population, ALIASES[0], 2)  # as an earlier version did
    cost, times = TrialCost(1.5, 0.5, 0.25, 900, 7, "0a1b2c3d", 2, "4e5f6071"), TrialTimes(100.0, 103.5, 1.0)
    plain = cost.to_plain() | times.to_plain()
    with population.opened(ALIASES[1:2]) as engines:
        engine = engines[ALIASES[1]]
        first, second, _ = engine.ask(3)
        engine.tell(first.id, {"loss": 2.0, "rouge_l": 0.1}, plain)
        engine.fail(second.id, "out of memory", plain)
    write_tables(folder, population, inputs.architecture)
    table = read_table(folder.layout.table("trials"))
    names = [one.name for kind in (TrialCost, TrialTimes) for one in fields(kind)]
    known = table[table.user == ALIASES[1]].set_index("trial")
    for number in (first.id, second.id):
        assert known.loc[number, names].tolist() == [plain[name] for name in names]
    unknown = pd.concat([known.loc[[2]], table[table.user == ALIASES[0]]])[names]
    assert all((unknown.pop(name) == "").all() for name in ("node", "worker"))
    assert unknown.isna().all(axis=None)


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-40])])
def test_a_log_that_is_gone_or_cut_is_no_search_that_has_not_begun(
    tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    population, folder, inputs = population_of(tmp_path)
    for alias in ALIASES[:2]:
        search(population, alias, 3)
    write_tables(folder, population, inputs.architecture)
    before = read_table(folder.layout.table("trials"))
    log = folder.layout.events(ALIASES[0])
    harm(log)
    left = log.read_bytes() if log.exists() else None
    with pytest.raises(StorageError, match="event log is gone, or shorter"):
        population.engine(ALIASES[0])
    with pytest.raises(StorageError, match="event log is gone, or shorter"):
        write_tables(folder, population, inputs.architecture)
    assert read_table(folder.layout.table("trials")).equals(before)
    assert (log.read_bytes() if log.exists() else None) == left


def test_a_log_that_vanishes_under_an_engine_is_said(tmp_path: Path) -> None:
    population, folder, _ = population_of(tmp_path)
    with population.opened(ALIASES[:1]) as engines:
        folder.layout.events(ALIASES[0]).unlink()
        with pytest.raises(StorageError, match="event log is gone"):
            engines[ALIASES[0]].ask(1)
    assert not folder.layout.events(ALIASES[0]).exists()


def test_show_tells_of_a_memory_of_an_earlier_choice_and_of_anothers(tmp_path: Path) -> None:
    population, folder, inputs = population_of(tmp_path)
    search(population, ALIASES[0], 3)
    write_tables(folder, population, inputs.architecture)
    chosen = population.chosen()[ALIASES[0]].placement.key

    def shown(placement: str, user: str) -> str:
        memory = folder.layout.memory(user)
        memory.mkdir(parents=True, exist_ok=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (memory / name).write_bytes(b"{}")
        (memory / NOTE).write_bytes(note_of(memory, placement, ALIASES[0]))
        console = Console(width=200, record=True, quiet=False, file=io.StringIO())
        console.print(user_view(folder, user))
        return console.export_text()

    assert "earlier choice" not in shown(chosen, ALIASES[0])
    assert "earlier choice" in shown("0:1", ALIASES[0])
    search(population, ALIASES[1], 3)
    write_tables(folder, population, inputs.architecture)
    with pytest.raises(RunFolderError, match="it is of user"):
        shown(chosen, ALIASES[1])


def test_engines_live_as_long_as_they_are_at_work(tmp_path: Path) -> None:
    population, _, _ = population_of(tmp_path)
    with population.opened(ALIASES[:2]) as engines:
        assert population.engine(ALIASES[0]) is engines[ALIASES[0]]
        kept = weakref.ref(engines[ALIASES[0]])
    gc.collect()
    assert kept() is None and not engines
    assert population.engine(ALIASES[0]).counts.asked == 0


def test_tables_hold_every_user_that_was_begun(tmp_path: Path) -> None:
    population, folder, inputs = population_of(tmp_path)
    write_tables(folder, population, inputs.architecture)
    assert not (tmp_path / "tables").exists()
    search(population, ALIASES[0], 3)
    search(population, ALIASES[3], 2)
    write_tables(folder, population, inputs.architecture)
    trials = read_table(folder.layout.table("trials"))
    assert list(trials.user.unique()) == [ALIASES[0], ALIASES[3]] and len(trials) == 3 + 2 + 2
    assert (
        len(read_table(folder.layout.table("hypervolume"))) == 5
        and len(read_table(folder.layout.table("chosen"))) == 2
    )


def test_a_space_of_one_configuration_has_tables_and_no_experiment(tmp_path: Path) -> None:
    smallest = MemorySettings(ranks=(8,), max_loras=1)
    population, folder, inputs = population_of(tmp_path, trials=1, layers=1, memory=smallest)
    for alias in ALIASES:
        search(population, alias, 1)
    write_tables(folder, population, inputs.architecture)
    assert len(read_table(folder.layout.table("chosen"))) == len(ALIASES)
    assert not (tmp_path / "experiments").exists()
