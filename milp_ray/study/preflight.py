"""What every worker of a study would meet, found before Ray is started.

The base model's files are held against its configuration, the packages that they ask for are looked for, and
every user's prompts are rendered. Workers that cannot be set up are told one by one and tried elsewhere; what
keeps *all* of them from working is no fault of a worker, and is said here, at once and together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from milp_ray.config.models import Study
from milp_ray.data.prompts import Prompts
from milp_ray.errors import MilpRayError, Problem, ProblemsError, StudyError
from milp_ray.memory.architectures import Architecture
from milp_ray.study.inputs import Users

T = TypeVar("T")


def preflight(study: Study, architecture: Architecture, users: Users | None) -> list[MilpRayError]:
    """Everything that keeps workers of a study from their first trial; empty if nothing is found.

    Args:
        study: resolved. A simulated one asks for nothing of its base but the configuration.
        architecture: of its base model.
        users: None where they could not be read.
    """
    if study.simulation is not None:
        return []
    from milp_ray.training.pretrained import check_vocabulary, load_config, load_tokenizer
    from milp_ray.training.requirements import check_requirements
    from milp_ray.training.verify import verify_base

    found: list[MilpRayError] = []
    tokenizer = attempt(lambda: load_tokenizer(study.model), found)
    if tokenizer is not None:
        attempt(lambda: check_vocabulary(tokenizer, architecture), found)
        if users is not None:
            attempt(lambda: _render_prompts(study, users, tokenizer), found)
    missing = len(found)
    attempt(lambda: check_requirements(study.model, load_config(study.model)), found)
    if len(found) == missing:  # else the same would be said in other words
        attempt(lambda: verify_base(study.model), found)
    return found


def _render_prompts(study: Study, users: Users, tokenizer: Any) -> None:
    """A sample of every user can be put into the study's prompts."""
    prompts = Prompts(study.prompts)
    for user in users.splits.values():
        prompts.encode_sample(tokenizer, user.validation[0])


def attempt(step: Callable[[], T], found: list[MilpRayError]) -> T | None:
    """The step's result, or None and its error added to the others."""
    try:
        return step()
    except MilpRayError as error:
        found.append(error)
        return None


def together(study: Study, found: Sequence[MilpRayError]) -> StudyError:
    """One error that tells all of them, in their order."""
    problems = [
        Problem(" ".join(part for part in (title, p.where) if part), p.fact, p.expected, p.remedy)
        for error in found
        for title in [error.title if isinstance(error, ProblemsError) else ""]
        for p in error.problems
    ]
    result = StudyError(f"study {study.name}", problems)
    # Who checks before submitting tries again after 1: only where no error would be there again.
    result.exit_code = max(error.exit_code for error in found)
    return result
