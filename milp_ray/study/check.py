"""`milp-ray check`: everything about a study that can be validated before a GPU is touched.

The model's config is loaded and its modules built without weights, the data is read and split, the
space is laid over the model, and what the study will do is counted. A run that the study has
already is compared with it, as a job that is submitted would. No Ray is started, and nothing is
written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from milp_ray.config.loading import resolved
from milp_ray.config.models import Study
from milp_ray.errors import MilpRayError, StorageError
from milp_ray.ids import new_key
from milp_ray.layout import EVENTS, SCORES
from milp_ray.model.pretrained import load_config
from milp_ray.search.core.events import ended_trials
from milp_ray.search.surrogates import check_surrogate
from milp_ray.storage import is_url, names_in, pull, reading
from milp_ray.study.alias_key import given_key
from milp_ray.study.exposure import exposures
from milp_ray.study.inputs import Inputs, load_base_fingerprint, load_space
from milp_ray.study.location import refuse_existing, run_location
from milp_ray.study.preflight import attempt, combined, preflight
from milp_ray.study.prompt_frame import prompt_notes
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.units import units_of
from milp_ray.study.users import Users, load_users
from milp_ray.trial.estimate import estimate, trainable_range
from milp_ray.trial.unit import SearchUnit


def check_study(study: Study) -> RenderableType:
    """Validate a study and describe what it would do.

    Where it has a run already, what submitting it would meet there is looked at, too: whether the
    run is of this study, and was begun with this data and this base model.

    Raises:
        StudyError: with every problem found. Its exit code is 1 where the storage alone is at
            fault.
    """
    study = resolved(study)
    found: list[MilpRayError] = []
    attempt(lambda: check_surrogate(study.search.surrogate), found)
    run = attempt(lambda: _storage(study), found)
    given = attempt(lambda: given_key(study), found)
    key, data, base = given or new_key(), None, None
    if run is not None:
        key, data, base = run.key, run.fingerprint, run.base
        as_run = {"model": run.study.model, "prompts": run.study.prompts}  # a hub model's commit, the date
        study = study.model_copy(update=as_run)
    first_steps = ""
    structure = attempt(lambda: load_space(study, base), found)
    users = attempt(lambda: load_users(study, key, data), found)
    if structure is not None:
        attempt(lambda: load_base_fingerprint(study, base), found)
        looked = preflight(study, structure[0], users)
        found += looked.faults
        first_steps = looked.first_steps
    progress = attempt(lambda: _progress(run, users), found) if run and users else None
    if found or structure is None or users is None:
        raise combined(study, found)
    return _description(study, Inputs(users, *structure), first_steps, progress or "")


def _storage(study: Study) -> RunFolder | None:
    """The run that the study has already; it, or a new one, can be written."""
    run = RunFolder.of(study)
    location = run_location(study)
    if run is None:
        refuse_existing(location)
    if is_url(location):  # it was listed; whether it may be written shows when it is
        return run
    nearest = next(folder for folder in (Path(location), *Path(location).parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise StorageError(
            f"{nearest} {'cannot be written' if nearest.is_dir() else 'is a file'}",
            where="storage.path",
            expected="a folder of yours",
            remedy="choose another storage.path",
        )
    return run


def _progress(run: RunFolder, users: Users) -> str:
    """How far a run is, as its files say; a driver may be at work on it."""
    pull(run.root / EVENTS, "*.jsonl")
    units = units_of(run.study, users)
    ended = sum(ended_trials(run.layout.events(alias)) for alias in units.present)
    text = f"{ended} of {run.study.search.trials * len(units.present)} trials ended"
    if run.study.simulation is not None:
        return text
    with reading(run.root):
        scores = names_in(run.root / SCORES)
    tested = sum(run.layout.scores(alias).name in scores for alias in units.owners)
    return f"{text}, {tested} of {len(units.owners)} users tested"


def _description(study: Study, inputs: Inputs, first_steps: str, progress: str) -> RenderableType:
    arch, space, users = inputs.architecture, inputs.space, list(inputs.users.splits.values())
    fewest, most = trainable_range(arch, space)
    units = units_of(study, inputs.users)
    memory = estimate(arch, load_config(study.model), study)
    rows = [
        ("model", f"{arch.model_type}, {arch.num_layers} layers, LoRA width at most {arch.width}"),
        (
            "users",
            f"{len(users)}" + "".join(f"; {n} left out: {why}" for why, n in inputs.users.skipped.items()),
        ),
        *(("dropped", f"{n} {what}") for what, n in inputs.users.dropped.items()),
        *(("note", note) for note in inputs.users.notes),
        *units.described(),
        ("samples", _span((len(u.train) + len(u.validation) + len(u.test) for u in users), "a user")),
        ("history", _span((len(u.search_history) for u in users), "texts a user for the search")),
        *(("prompts", note) for note in prompt_notes(study)),
        (
            "trials",
            f"{study.search.trials} a {units.noun}, {study.search.initial} of them initial; "
            f"{study.search.trials * len(units.present)} in all",
        ),
        ("steps", _span((_steps(units.unit(alias), study) for alias in units.present), "a trial")),
        ("search space", f"{study.memory.factors}: at most {space.size():.3g} configurations"),
        ("trainable parameters", f"{fewest:,} to {most:,}"),
        ("memory, estimated", f"{memory.total / 2**30:.2f} GiB a worker at the largest placement"),
        *([("a worker's first steps", first_steps)] if first_steps else []),
        ("run folder", run_location(study)),
        *(("note", text) for text in (*exposures(study), *_without_gpu(study))),
        *([("run", f"is there; a job, or milp-ray resume, goes on with it: {progress}")] if progress else []),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return Group(table, Text("the study is fine"))


def _steps(unit: SearchUnit, study: Study) -> int:
    """Optimizer steps of a trial, over all its users and both stages."""
    batch, trial = study.optimizer.batch_size, study.trial
    steps = sum(math.ceil(len(user.search_history) / batch) * trial.epochs for user in unit.users)
    if "instruct" in trial.stages:
        taught = [*unit.users, *([unit.shared] if unit.shared is not None else [])]
        steps += sum(math.ceil(len(user.train) / batch) * trial.instruct_epochs for user in taught)
    return steps


def _without_gpu(study: Study) -> list[str]:
    """A study that asks for GPUs may be looked at where there is none, and cannot run there."""
    asked = [
        *(["model.device"] if study.model.device == "cuda" else []),
        *(["ray.gpus_per_worker"] if study.ray.gpus_per_worker not in ("auto", 0) else []),
    ]
    if not asked or study.simulation is not None or torch.cuda.is_available():
        return []
    return [
        f"{' and '.join(asked)} asks for a GPU, and this machine has none: the study needs a "
        "cluster that has one (milp-ray submit, or ray.address)"
    ]


def _span(values: Iterable[int], unit: str) -> str:
    found = sorted(values)
    low, high = found[0], found[-1]
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
