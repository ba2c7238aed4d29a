"""What the trials of a study share, and what one trial is: what travels from the driver to its workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milp_ray.config.models import Study
from milp_ray.layout import Layout
from milp_ray.memory.space import Placement
from milp_ray.tune.cluster.shared import SharedUsers


@dataclass(frozen=True)
class TrialSpec:
    """What every trial of a study shares. Sent once per worker, by way of the object store.

    ``users`` maps aliases to object references: texts travel in memory to the workers that need them, and
    stand in no config, name or file of Ray's. ``root`` is the run folder, ``session`` the id of the driver's
    session that its workers publish for.
    """

    study: Study
    users: SharedUsers
    root: Path
    session: str = ""

    @property
    def layout(self) -> Layout:
        """The run's paths."""
        return Layout(self.root)


def ticket_of(config: Mapping[str, object]) -> tuple[str, int, Placement]:
    """Alias, number and placement of a trial's config."""
    number: Any = config["trial"]
    return str(config["user"]), int(number), Placement.from_key(str(config["placement"]))
