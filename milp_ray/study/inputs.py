"""From a study to a search's inputs: users under aliases, architecture, memory space.

Everything a study can get wrong about its data and model is found here, before Ray or a GPU is
touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from milp_ray.config.models import Study
from milp_ray.config.objectives import Objective, objectives_on
from milp_ray.data.digests import Fingerprint
from milp_ray.memory.architectures import Architecture
from milp_ray.memory.space import MemorySpace, points_of, space_from
from milp_ray.search import Engine
from milp_ray.search.core.records import EngineSettings
from milp_ray.study.users import Users, load_users


@dataclass(frozen=True)
class Inputs:
    """What a study's data and model come to. ``base``: the model's fingerprint, or empty."""

    users: Users
    architecture: Architecture
    space: MemorySpace
    base: Mapping[str, str] = field(default_factory=dict)


def load_inputs(
    study: Study,
    key: bytes,
    fingerprint: Fingerprint | None = None,
    base: Mapping[str, str] | None = None,
) -> Inputs:
    """Everything of :func:`load_space`, :func:`load_base_fingerprint` and :func:`load_users`.

    Raises what they raise.
    """
    architecture, space = load_space(study, base)
    found = load_base_fingerprint(study, base)
    return Inputs(load_users(study, key, fingerprint), architecture, space, found)


def load_space(study: Study, before: Mapping[str, str] | None = None) -> tuple[Architecture, MemorySpace]:
    """The base model's structure and the memory space on it, from its configuration alone.

    Args:
        study: resolved.
        before: fingerprint of the base that the run was begun with: other code of the model's own
            than that is not run.

    Raises:
        ModelError, SpaceError: the model, or the space on it, is not usable.
    """
    from milp_ray.model.fingerprint import check_code
    from milp_ray.model.pretrained import check_fits, load_architecture

    check_code(before or {}, study.model)
    architecture = load_architecture(study.model)
    check_fits(architecture, study)
    space = space_from(study.memory, architecture.num_layers, architecture.width)
    settings_of(study, space)  # what is wrong with a point is told before anything is computed
    return architecture, space


def load_base_fingerprint(study: Study, before: Mapping[str, str] | None = None) -> dict[str, str]:
    """The fingerprint of a study's base model, after :func:`load_space`, which fetches hub files.

    A simulated study uses nothing but the model's structure: it has the fingerprint of the code
    alone.

    Args:
        study: resolved.
        before: what an earlier part of the run found; empty or None where nothing did.

    Raises:
        ModelError: a file of the model cannot be read, or it is another model than before.
    """
    from milp_ray.model.fingerprint import base_fingerprint, check_base, code_fingerprint

    simulated = study.simulation is not None
    found = code_fingerprint(study.model) if simulated else base_fingerprint(study.model)
    check_base(before or {}, found)
    return found


def objectives_of(study: Study, architecture: Architecture) -> tuple[Objective, ...]:
    """The study's objectives; an exact one is computed from the placement, never modelled."""
    return objectives_on(architecture, study.objectives)


def engine_for(study: Study, inputs: Inputs, alias: str, log: Path) -> Engine:
    """A user's engine, replayed from its event log if there is one.

    Users share the study's seed but not each other's random numbers.
    """
    settings = settings_of(study, inputs.space)
    return Engine(
        inputs.space,
        objectives_of(study, inputs.architecture),
        initial=settings.initial,
        batch=settings.batch,
        surrogate=settings.surrogate,
        surrogate_options=settings.surrogate_options,
        outcome=settings.outcome,
        seed=study.seed * 1_000_003 + inputs.users.number(alias),
        trials=settings.trials,
        points=settings.points,
        log=log,
    )


def settings_of(study: Study, space: MemorySpace) -> EngineSettings:
    """What all engines of a study have in common beside the space and the objectives.

    Raises:
        StudyError: a point to evaluate is not of the space.
    """
    search = study.search
    options = search.saas.model_dump() if search.surrogate == "saas" else {}
    points = points_of(search.points_to_evaluate, space)
    return EngineSettings(
        search.initial, search.batch, search.surrogate, options, search.trials, search.outcome, points
    )
