"""`milp-ray check --serve ENGINE`: whether what a search may find could be served."""

from __future__ import annotations

from milp_ray.config.loading import resolved
from milp_ray.config.models import Study
from milp_ray.errors import StudyError
from milp_ray.memory.export import portable_name
from milp_ray.serving.engines import Served, find_engine, study_problems
from milp_ray.study.inputs import load_space


def check_served(study: Study, engine: str) -> str:
    """What an engine needs for any memory that the study can choose, as a line.

    Args:
        study: as loaded.
        engine: a name of :data:`~milp_ray.serving.engines.ENGINES`.

    Raises:
        StudyError: the engine is unknown, or would refuse memories whatever is found.
        ModelError, SpaceError: the model, or the space on it, is not usable.
    """
    known, asked = find_engine(engine), resolved(study)
    architecture, space = load_space(asked)
    largest = space.largest_ranks()[0]
    served = Served(architecture.model_type, architecture.num_layers, portable_name(asked.model.path))
    if refused := list(study_problems(known, served, largest)):
        raise StudyError(f"{study.name}, served by {engine}", refused)
    rank = known.rank_for(largest) if known.one_rank else largest
    return f"{known.version} serves every memory of this study, of ranks up to {rank}"
