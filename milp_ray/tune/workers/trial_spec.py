"""What the trials of a study share; it is sent from the driver to every worker once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from milp_ray.config.models import Study
from milp_ray.layout import Layout

if TYPE_CHECKING:
    import ray

    from milp_ray.trial.unit import SearchUnit


@dataclass(frozen=True)
class TrialSpec:
    """What every trial of a study shares. Ray's object store carries it to each worker once.

    Attributes:
        study: as workers read it.
        units: references to what is searched, by alias, with the users' texts. Texts are sent in
            memory to the workers that need them, and are in no config, name or file of Ray's.
        root: the run folder.
        session: id of the driver's session that its workers publish for.
    """

    study: Study
    units: Mapping[str, ray.ObjectRef[SearchUnit]]
    root: Path
    session: str = ""

    @property
    def layout(self) -> Layout:
        """The run's paths."""
        return Layout(self.root)
