"""Who else can read a study's data and run: told by `milp-ray check`, refused by nobody."""

from __future__ import annotations

from pathlib import Path

from milp_ray.config.models import Study
from milp_ray.storage import is_url, readers_of
from milp_ray.study.location import run_location


def exposures(study: Study) -> list[str]:
    """A line for each file or folder of a resolved study that others can read, with the remedy.

    What is at a URL is the store's to guard. A run that its group may read by
    ``storage.readable_by`` is as asked.
    """
    location = run_location(study)
    found = []
    for what, path, expected, remedy in (
        *(("the users' data", path, "", "chmod go= ") for path in _data_files(study)),
        ("the run's memories and tables", location, study.storage.readable_by, "chmod -R go= "),
    ):
        if is_url(path) or not Path(path).exists():
            continue
        who = readers_of(Path(path))
        if who and not (expected == "group" and who.startswith("the group")):
            found.append(f"{who} can read {what}: {remedy}{path}")
    return found


def _data_files(study: Study) -> tuple[str, ...]:
    return (study.data.path, *study.data.files.values())
