"""`milp-ray check`: everything about a study that can be validated before a GPU is touched.

The model's config is loaded and its modules built without weights, the data is read and split, the space is
laid over the model, and what the study will do is counted. Nothing is started and nothing is written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from milp_ray.config.loading import resolved
from milp_ray.config.models import Study
from milp_ray.data.prompts import Prompts
from milp_ray.errors import MilpRayError, Problem, ProblemsError, StudyError
from milp_ray.ids import new_key
from milp_ray.search.surrogates import check_surrogate
from milp_ray.storage import is_url
from milp_ray.study.inputs import Inputs, Users, load_space, load_users
from milp_ray.study.run_folder import place_of, refuse_existing
from milp_ray.training.base import load_config, load_tokenizer
from milp_ray.training.estimate import estimate, trainable_range
from milp_ray.training.verify import verify_modules

T = TypeVar("T")


def check_study(study: Study) -> RenderableType:
    """Validate a study and describe what it would do.

    Raises:
        StudyError: with every problem found.
    """
    study = resolved(study)
    problems: list[Problem] = []
    _attempt(lambda: check_surrogate(study.search.surrogate), problems)
    _attempt(lambda: _storage(study), problems)
    structure = _attempt(lambda: load_space(study), problems)
    users = _attempt(lambda: load_users(study, new_key()), problems)
    if structure is not None and study.simulation is None:  # a simulated study needs config.json only
        architecture = structure[0]
        _attempt(lambda: verify_modules(study.model, architecture), problems)
        tokenizer = _attempt(lambda: load_tokenizer(study.model), problems)
        if users is not None and tokenizer is not None:
            _attempt(lambda: _prompts(study, users, tokenizer), problems)
    if problems or structure is None or users is None:
        raise StudyError(f"study {study.name}", problems)
    return _description(study, Inputs(users, *structure))


def _attempt(step: Callable[[], T], problems: list[Problem]) -> T | None:
    """The step's result, or None and its problems added to the others."""
    try:
        return step()
    except MilpRayError as error:
        title = error.title if isinstance(error, ProblemsError) else ""
        problems += [
            Problem(" ".join(part for part in (title, p.where) if part), p.fact, p.expected, p.remedy)
            for p in error.problems
        ]
        return None


def _storage(study: Study) -> None:
    place = place_of(study)
    refuse_existing(place)
    if is_url(place):  # it was listed; whether it may be written shows when it is
        return
    parent = next(folder for folder in Path(place).parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise StudyError(
            "storage.path",
            [Problem("", f"{parent} cannot be written", "a folder of yours", "choose another storage.path")],
        )


def _prompts(study: Study, users: Users, tokenizer: Any) -> None:
    """A sample of every user can be put into the study's prompts."""
    prompts = Prompts(study.prompts)
    for user in users.splits.values():
        prompts.encode_sample(tokenizer, user.validation[0])


def _description(study: Study, inputs: Inputs) -> RenderableType:
    arch, space, users = inputs.architecture, inputs.space, list(inputs.users.splits.values())
    fewest, most = trainable_range(arch, space)
    batch = study.optimizer.batch_size
    steps = [math.ceil(len(user.search_history) / batch) * study.trial.epochs for user in users]
    if "instruct" in study.trial.stages:
        extra = [math.ceil(len(user.train) / batch) * study.trial.instruct_epochs for user in users]
        steps = [a + b for a, b in zip(steps, extra, strict=True)]
    memory = estimate(arch, load_config(study.model), study)
    rows = [
        ("model", f"{arch.model_type}, {arch.num_layers} layers, LoRA width at most {arch.width}"),
        (
            "users",
            f"{len(users)}" + "".join(f"; {n} left out: {why}" for why, n in inputs.users.skipped.items()),
        ),
        *(("dropped", f"{n} {what}") for what, n in inputs.users.dropped.items()),
        ("samples", _span((len(u.train) + len(u.validation) + len(u.test) for u in users), "a user")),
        ("history", _span((len(u.search_history) for u in users), "texts a user for the search")),
        (
            "trials",
            f"{study.search.trials} a user, {study.search.initial} of them initial; "
            f"{study.search.trials * len(users)} in all",
        ),
        ("steps", _span(steps, "a trial")),
        ("search space", f"{study.memory.factors}: at most {space.size():.3g} configurations"),
        ("trainable parameters", f"{fewest:,} to {most:,}"),
        ("memory, estimated", f"{memory.total / 2**30:.2f} GiB a worker at the largest placement"),
        ("run folder", place_of(study)),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return Group(table, Text("the study is fine"))


def _span(values: Iterable[int], unit: str) -> str:
    found = sorted(values)
    low, high = found[0], found[-1]
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
