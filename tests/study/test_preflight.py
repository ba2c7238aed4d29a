"""A worker's first steps are tried before Ray starts, in a process of their own, and told in its
words."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from milp_ray.config.loading import load_study, resolved
from milp_ray.config.models import Study
from milp_ray.data.records import UserSplit
from milp_ray.errors import DataError, MilpRayError, ModelError, Problem, StudyError
from milp_ray.ids import new_key
from milp_ray.study import driver, run
from milp_ray.study import preflight as looking
from milp_ray.study.inputs import Inputs, load_inputs
from milp_ray.study.prompt_frame import prompt_frame
from milp_ray.study.run_folder import RunFolder
from milp_ray.trial import rehearsal
from milp_ray.trial.rehearsal import Rehearsal, rehearse, too_large
from tests.study.conftest import CANARY

REHEARSE = "ray.rehearse=true"


def inputs_of(study_file: Path, *overrides: str) -> tuple[Inputs, looking.Study]:
    study = resolved(load_study(study_file, overrides))
    return load_inputs(study, new_key()), study


def found(study_file: Path, *overrides: str) -> looking.Preflight:
    inputs, study = inputs_of(study_file, *overrides)
    return looking.preflight(study, inputs.architecture, inputs.users)


def with_nan(shallow_model: Path, folder: Path) -> Path:
    model = Path(shutil.copytree(shallow_model, folder / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


def test_a_base_with_numbers_that_are_not_finite_is_told_by_a_process_of_its_own(
    study_file: Path, shallow_model: Path
) -> None:
    model = with_nan(shallow_model, study_file.parent)
    looked = found(study_file, f"model.path={model}", REHEARSE)
    (fault,) = looked.faults
    assert isinstance(fault, ModelError) and "a first step on it fails: loss is not finite" in str(fault)
    assert CANARY not in str(fault)


def test_a_base_that_works_passes_in_this_process_as_in_another(study_file: Path) -> None:
    inputs, study = inputs_of(study_file)
    user = next(iter(inputs.users.splits.values()))
    before = torch.random.get_rng_state()
    rehearse(Rehearsal(study, user))
    assert torch.equal(torch.random.get_rng_state(), before)
    both = study.model_copy(
        update={"trial": study.trial.model_copy(update={"stages": ("inject", "instruct")})}
    )
    rehearse(Rehearsal(both, user))


def test_what_is_tried_travels_as_text(study_file: Path) -> None:
    inputs, study = inputs_of(study_file)
    found = next(iter(inputs.users.splits.values()))
    labelled = replace(found.train[0], label="a", choices=("a", "b"))
    user = replace(found, train=(labelled, *found.train[1:]), profile=(("town", "Ghent"),))
    again = Rehearsal.from_json(Rehearsal(study, user).to_json())
    assert again == Rehearsal(study, user) and hash(again.user) == hash(user)
    few = rehearsal._shortest(user)
    assert isinstance(few, UserSplit) and len(few.search_history) == 2 and len(few.validation) == 1


def test_an_error_of_a_first_step_is_told_by_its_place(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by its message, which may quote a text."""
    inputs, study = inputs_of(study_file)

    def fails(*_: object) -> None:
        raise ValueError(CANARY)

    monkeypatch.setattr("milp_ray.trial.lifecycle.Trial.run", fails)
    with pytest.raises(
        ModelError, match=r"a first step on it fails: ValueError at test_preflight.py:\d+"
    ) as caught:
        rehearse(Rehearsal(study, next(iter(inputs.users.splits.values()))))
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import no_such_package_of_a_worker", "No module named 'no_such_package_of_a_worker'"),
        ("import ctypes; ctypes.string_at(0)", 'crashed (SIGSEGV) File "'),
        ("import os; os.abort()", "crashed (SIGABRT)"),
        ("import sys; sys.exit(5)", "exit code 5"),
    ],
)
def test_a_process_that_ends_without_an_answer_is_told_by_its_last_words(
    study_file: Path, monkeypatch: pytest.MonkeyPatch, program: str, says: str
) -> None:
    inputs, study = inputs_of(study_file, REHEARSE)
    monkeypatch.setattr(looking, "_REHEARSE", program)
    with pytest.raises(MilpRayError) as caught:
        looking._first_steps(study, inputs.users)
    assert says in str(caught.value) and caught.value.exit_code == 2
    assert "a worker's first steps" in str(caught.value)


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ran out of memory"),
        ("import time; time.sleep(60)", "this machine took more than"),
        (
            "from milp_ray.errors import ClusterError; import json; "
            "print(json.dumps({'fault': ClusterError('no memory was left').to_plain()}))",
            "no memory was left",
        ),
        ("print('noise'); print('{}')", "tried here in"),
    ],
)
def test_what_this_machine_alone_lacks_is_no_fault_of_the_study(
    study_file: Path, monkeypatch: pytest.MonkeyPatch, program: str, says: str
) -> None:
    inputs, study = inputs_of(study_file, REHEARSE)
    monkeypatch.setattr(looking, "_REHEARSE", program)
    monkeypatch.setattr(looking, "_REHEARSAL_SECONDS", 2.0 if "sleep" in program else 60.0)
    assert says in looking._first_steps(study, inputs.users)


def test_no_first_step_is_tried_of_a_base_that_is_large_or_elsewhere(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(subprocess, "run", never)
    inputs, study = inputs_of(study_file)
    assert "ray.rehearse" in looking._first_steps(study, inputs.users)
    wanted = study.model_copy(update={"ray": study.ray.model_copy(update={"rehearse": True})})
    assert "26.1 GiB is larger than" in too_large(wanted, 7_000_000_000)
    assert too_large(wanted, 1_000_000) == ""
    monkeypatch.setattr(rehearsal, "MOST_BYTES", 10)
    assert "is larger than" in looking._first_steps(wanted, inputs.users)
    hub = wanted.model_copy(update={"model": wanted.model.model_copy(update={"path": "no/such-model"})})
    assert "not on this machine" in looking._first_steps(hub, inputs.users)


def test_nothing_is_tried_where_something_is_wrong_already(study_file: Path, shallow_model: Path) -> None:
    model = Path(shutil.copytree(shallow_model, study_file.parent / "model"))
    values = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": 9}
    (model / "config.json").write_text(json.dumps(values))
    looked = found(study_file, f"model.path={model}", REHEARSE)
    assert len(looked.faults) == 1 and "lack" in str(looked.faults[0]) and not looked.first_steps


@pytest.mark.parametrize(("version", "tried"), [(None, False), ("0.1", True)])
def test_a_run_that_is_gone_on_with_is_looked_at_before_ray_starts(
    study_file: Path, monkeypatch: pytest.MonkeyPatch, version: str | None, tried: bool
) -> None:
    study, key = resolved(load_study(study_file)), new_key()
    inputs = load_inputs(study, key)
    folder = RunFolder.create(study, inputs.users.fingerprint, key, inputs.base, prompt_frame(study))
    if version is not None:
        meta = json.loads((folder.root / "run.json").read_text())
        meta["packages"]["peft"] = version
        (folder.root / "run.json").write_text(json.dumps(meta))
    asked: list[bool] = []

    def looked(*_: object, first_steps: bool) -> looking.Preflight:
        asked.append(first_steps)
        return looking.Preflight(
            [ModelError("a package is gone", where="model.path", expected="it", remedy="install it")]
        )

    monkeypatch.setattr(driver, "preflight", looked)
    monkeypatch.setattr(run, "ray_session", None)
    with pytest.raises(StudyError, match="a package is gone") as told:
        driver.resume(folder.root, Console(quiet=True))
    assert asked == [tried] and told.value.exit_code == 2
    assert any("milp-ray resume" in note for note in told.value.__notes__)


def test_each_place_is_named_once_and_apart_from_its_source() -> None:
    data = DataError("users.jsonl", [Problem("users.jsonl:3 (byte 0)", "is not UTF-8")])
    run = StudyError("the run runs/f is of another study", [Problem("seed", "is 4, and was 3")])
    told = str(looking.combined(Study.model_construct(name="f"), [data, run]))
    assert told.count("users.jsonl") == 1 and "another study, seed: is 4" in told
