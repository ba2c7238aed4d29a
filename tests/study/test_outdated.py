"""A run that is given more trials: what of it stays, what is made again, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from milp_ray.config.loading import load_study
from milp_ray.errors import StorageError, StudyError
from milp_ray.layout import ADAPTER_CONFIG
from milp_ray.memory.adapter_notes import NOTE
from milp_ray.memory.adapters import lora_config
from milp_ray.memory.placement import Placement
from milp_ray.storage import write_json
from milp_ray.study import driver, run_folder
from milp_ray.study.outdated import Outdated, outdated
from milp_ray.study.run import Run
from milp_ray.study.run_folder import RunFolder
from tests.study.conftest import call
from tests.study.test_bad_input import NOBODY, a_run, unwrapped
from tests.study.test_population import ALIASES, population_of, search

A, B, C = ALIASES[:3]
OLD, NEW = Placement(((0, 8), (3, 16))), Placement(((0, 8), (2, 16)))


def keep(folder: RunFolder, architecture: Any, alias: str, placement: Placement, other: str | None) -> None:
    """A memory and its scores, as the final job leaves them."""
    config = lora_config(placement, architecture).to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    folder.layout.memory(alias).mkdir(parents=True)
    (folder.layout.memory(alias) / ADAPTER_CONFIG).write_text(json.dumps(config, default=str))
    write_json(folder.layout.scores(alias), {"placement": placement.key, "other": other, "models": {}})


def test_what_another_choice_leaves_is_the_memory_its_scores_and_those_tested_beside_it(
    tmp_path: Path,
) -> None:
    _, folder, inputs = population_of(tmp_path)
    chosen = dict.fromkeys((A, B, C), OLD)
    for alias, other in ((A, B), (B, C), (C, A)):
        keep(folder, inputs.architecture, alias, OLD, other)
    assert outdated(folder, inputs.architecture, chosen) == Outdated()
    found = outdated(folder, inputs.architecture, chosen | {A: NEW})
    assert found == Outdated(frozenset({A}), frozenset({A, C}))

    for alias in found.scores:  # cut off after the scores: what is left is still outdated
        folder.layout.scores(alias).unlink()
    assert outdated(folder, inputs.architecture, chosen | {A: NEW}).memories == {A}
    found.remove(folder)
    assert outdated(folder, inputs.architecture, chosen | {A: NEW}) == Outdated()
    assert folder.layout.memory(B).exists() and not folder.layout.memory(A).exists()
    assert folder.layout.scores(B).exists() and not folder.layout.scores(C).exists()


def test_a_memory_that_tells_no_placement_is_left_alone(tmp_path: Path) -> None:
    _, folder, inputs = population_of(tmp_path)
    for values in ({}, {"target_modules": "all-linear", "r": 8}, {"target_modules": ["other"]}, []):
        write_json(folder.layout.memory(A) / ADAPTER_CONFIG, values)
        assert outdated(folder, inputs.architecture, {A: NEW}) == Outdated()


def test_a_memory_tells_its_placement_by_its_note_or_by_what_differs_from_pefts_defaults(
    tmp_path: Path,
) -> None:
    _, folder, inputs = population_of(tmp_path)
    names = [module.name for layer in (0, 3) for module in inputs.architecture.modules(layer)]
    ranks = {name: 16 for name in names if ".3." in name}
    write_json(folder.layout.memory(A) / ADAPTER_CONFIG, {"target_modules": names, "rank_pattern": ranks})
    assert outdated(folder, inputs.architecture, {A: OLD}) == Outdated()
    assert outdated(folder, inputs.architecture, {A: NEW}).memories == {A}
    write_json(folder.layout.memory(A) / NOTE, {"placement": NEW.key})
    assert outdated(folder, inputs.architecture, {A: NEW}) == Outdated()
    assert outdated(folder, inputs.architecture, {A: OLD}).memories == {A}


def test_a_run_whose_choice_changed_is_not_complete(tmp_path: Path) -> None:
    """Also where the driver was killed between the search and the final job."""
    population, folder, inputs = population_of(tmp_path)
    for alias in ALIASES:
        search(population, alias, 3)
        chosen = population.chosen()[alias].placement
        keep(folder, inputs.architecture, alias, chosen, None)
    run = Run(folder, inputs, Console(quiet=True))
    assert run.complete()
    placement = population.chosen()[A].placement
    other = OLD if placement != OLD else NEW
    write_json(folder.layout.scores(A), {"placement": other.key, "other": None})
    assert not run.complete()
    run._drop_outdated(run.population.placements())
    assert (
        not folder.layout.scores(A).exists()
        and folder.layout.memory(A).exists()
        and folder.layout.scores(B).exists()
    )


def test_more_trials_are_written_down_and_nothing_else_changes(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_run(study_file)
    frozen = folder.root / "study.yaml"
    before = frozen.read_text()
    code, output = call("resume", str(folder.root), "search.trials=9", NOBODY)
    assert code == 1 and "nothing answers" in output, output
    assert frozen.read_text() == before.replace("trials: 6", "trials: 9")
    code, output = call("resume", str(folder.root), "search.trials=8", NOBODY)
    assert code == 2 and "is 8, and the run was given 9: what was measured cannot be taken back" in output
    code, output = call("resume", str(folder.root), NOBODY)
    assert code == 1 and load_study(frozen).search.trials == 9
    for command in ("resume", "final"):
        code, output = call(command, str(folder.root), "search.initial=2")
        assert code == 2 and "a run keeps its study" in output
    code, output = call("final", str(folder.root), "search.trials=20")
    assert code == 2 and "a run keeps its study" in output

    def full(*_: object) -> None:
        raise StorageError("no space is left")

    monkeypatch.setattr(run_folder, "atomic_write", full)
    code, output = call("resume", str(folder.root), "search.trials=12", NOBODY)
    assert code == 1 and "no space is left" in output and load_study(frozen).search.trials == 9


def test_a_job_of_the_study_with_more_trials_goes_on_too(study_file: Path) -> None:
    folder = a_run(study_file)
    code, output = call("check", str(study_file), "search.trials=9")
    assert code == 0 and "0 of 18 trials ended" in unwrapped(output), output
    assert load_study(folder.root / "study.yaml").search.trials == 6, "a check writes nothing"
    console = Console(quiet=True)
    with pytest.raises(Exception, match="nothing answers"):
        driver.start_or_resume(load_study(study_file, ["search.trials=9", NOBODY]), console)
    assert RunFolder.open(folder.root).study.search.trials == 9
    with pytest.raises(StudyError, match="is 6, and the run was given 9"):
        driver.start_or_resume(load_study(study_file, [NOBODY]), console)


def test_of_two_drivers_the_larger_number_counts(study_file: Path) -> None:
    folder = a_run(study_file)
    late = RunFolder.open(folder.root)
    folder.with_trials(9).keep_trials()
    late.keep_trials()
    assert late.study.search.trials == 9
