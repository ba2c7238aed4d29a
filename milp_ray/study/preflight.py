"""What every worker of a study would meet, found before Ray is started.

The base model's files are held against its configuration, the packages that they ask for are looked
for, every user's prompts are rendered, and the first steps of a worker are tried in a process of
their own. Workers that cannot be set up are told one by one and tried elsewhere; what keeps *all*
of them from working is no fault of a worker, and is said here, at once and together.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import milp_ray
from milp_ray.config.models import Study
from milp_ray.data.prompts import Prompts
from milp_ray.errors import (
    ClusterError,
    InstallError,
    MilpRayError,
    ModelError,
    Problem,
    ProblemsError,
    StudyError,
    from_plain,
    own_words,
)
from milp_ray.installed import check_versions
from milp_ray.memory.architectures import Architecture
from milp_ray.study.units import units_of
from milp_ray.study.users import Users
from milp_ray.tracking.interface import tracking_faults

T = TypeVar("T")

_REHEARSAL_SECONDS = 180.0  # that the first steps may take; a slower machine is no fault of the study


@dataclass
class Preflight:
    """What was found.

    Attributes:
        faults: everything that keeps workers from their first trial.
        first_steps: how trying a worker's first steps went, or why they were not tried.
    """

    faults: list[MilpRayError] = field(default_factory=list)
    first_steps: str = ""


def preflight(
    study: Study, architecture: Architecture, users: Users | None, *, first_steps: bool = True
) -> Preflight:
    """Everything that keeps workers of a study from their first trial.

    Args:
        study: resolved. A simulated one asks for nothing of its base but the configuration.
        architecture: of its base model.
        users: None where they could not be read.
        first_steps: whether they are tried, too, which takes some seconds.
    """
    try:
        check_versions()
    except InstallError as error:
        return Preflight([error])
    if faults := tracking_faults(study):
        return Preflight([StudyError("tracking", faults)])
    if study.simulation is not None:
        return Preflight()
    from milp_ray.model.pretrained import check_vocabulary, load_config, load_tokenizer
    from milp_ray.model.requirements import check_requirements
    from milp_ray.model.verify import verify_base

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
    result = Preflight(found)
    if first_steps and users is not None and not found:
        result.first_steps = attempt(lambda: _first_steps(study, users), found) or ""
    return result


def _first_steps(study: Study, users: Users) -> str:
    """Try a worker's first steps (:mod:`milp_ray.trial.rehearsal`), as far as this machine can.

    In a process of their own: what crashes or runs out of memory there takes nothing with it.

    Returns:
        How it went, where nothing is wrong with the study.

    Raises:
        MilpRayError: what every worker would meet.
    """
    from milp_ray.model.pretrained import load_config
    from milp_ray.model.weights import has_local_weights
    from milp_ray.trial.estimate import base_parameters
    from milp_ray.trial.rehearsal import Rehearsal, too_large

    if not study.ray.rehearse:
        return "not tried (ray.rehearse)"
    if not has_local_weights(study.model):
        return "not tried: the weights are not on this machine"
    if reason := too_large(study, base_parameters(load_config(study.model))):
        return f"not tried: {reason}"
    began = time.monotonic()
    units = units_of(study, users)
    work = Rehearsal(study, units.unit(units.present[0]).example()).to_json().encode()
    try:
        # The driver's own modules, and nothing of the working folder (-P).
        path = f"import sys; sys.path.append({str(Path(milp_ray.__file__).parents[1])!r}); "
        process = subprocess.run(
            [sys.executable, "-P", "-X", "faulthandler", "-c", path + _REHEARSE],
            input=work,
            capture_output=True,
            timeout=_REHEARSAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not tried to the end: this machine took more than {_REHEARSAL_SECONDS:.0f} s"
    if process.returncode == -signal.SIGKILL:
        return "not tried to the end: it was killed, most likely as this machine ran out of memory"
    error = _fault_of(process)
    if isinstance(error, ClusterError):  # this machine's memory, say, which need not be a worker's
        return f"not tried to the end: {error.problems[0].fact}"
    if error is not None:
        raise error
    return f"tried here in {time.monotonic() - began:.1f} s"


_REHEARSE = "from milp_ray.trial.rehearsal import main; main()"


def _fault_of(process: subprocess.CompletedProcess[bytes]) -> MilpRayError | None:
    """The last line of a process that tried the first steps, or how it ended without one."""
    said = process.stdout.decode(errors="replace").strip().rpartition("\n")[2]
    try:
        answer = json.loads(said)
    except ValueError:
        answer = {"broke": _last_words(process)}
    if fault := answer.get("fault"):
        return from_plain(fault)
    if "broke" not in answer:
        return None
    return ModelError(
        f"a worker's first steps (load the base, train on two texts) fail: {answer['broke']}",
        where="model.path",
        expected="a base, and packages, with which a worker can begin",
        remedy="try the base with transformers alone; install the pinned packages (constraints.txt)",
    )


def _last_words(process: subprocess.CompletedProcess[bytes]) -> str:
    """How a process ended that gave no answer, without any user's text.

    No text was read yet when an import failed, and of a crash only the signal and the code's places
    are written.
    """
    lines = [line.strip() for line in process.stderr.decode(errors="replace").splitlines() if line.strip()]
    if process.returncode < 0:
        place = next((line for line in lines if line.startswith("File ")), "")
        return own_words(RuntimeError(f"crashed ({signal.Signals(-process.returncode).name}) {place}"))
    return own_words(RuntimeError(lines[-1] if lines else f"exit code {process.returncode}"))


def _render_prompts(study: Study, users: Users, tokenizer: Any) -> None:
    """A sample of every user can be put into the study's prompts."""
    prompts = Prompts(study.prompts)
    for user in users.splits.values():
        prompts.encode_sample(tokenizer, (*user.validation, *user.test, *user.train)[0])


def attempt(step: Callable[[], T], found: list[MilpRayError]) -> T | None:
    """The step's result, or None and its error added to the others."""
    try:
        return step()
    except MilpRayError as error:
        found.append(error)
        return None


def combined(study: Study, found: Sequence[MilpRayError]) -> StudyError:
    """One error that tells all of them, in their order."""
    problems = [  # each once: several steps may meet the same
        Problem(_where(title, p.where), p.fact, p.expected, p.remedy)
        for error in found
        for title in [error.title if isinstance(error, ProblemsError) else ""]
        for p in error.problems
    ]
    result = StudyError(f"study {study.name}", dict.fromkeys(problems))
    # Who checks before submitting tries again after 1: only where no error would be there again.
    result.exit_code = max(error.exit_code for error in found)
    return result


def _where(title: str, where: str) -> str:
    """Where a problem is: of data, ``where`` names the file already ("users.jsonl:3 (byte 0)")."""
    return ", ".join(part for part in ("" if title and where.startswith(title) else title, where) if part)
