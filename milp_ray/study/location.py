"""The location of a study's run, and whether something is there.

What is in a run is :mod:`milp_ray.study.run_folder`'s.
"""

from __future__ import annotations

from pathlib import Path

from milp_ray.config.models import Study
from milp_ray.errors import RunFolderError
from milp_ray.ids import child
from milp_ray.layout import FIRST, LEASES, META
from milp_ray.storage import is_url, joined, mirror_at


def run_location(study: Study) -> str:
    """The location of a resolved study's run, made already or not: a path, or a URL."""
    if is_url(study.storage.path):
        return joined(study.storage.path, study.name)
    return str(child(Path(study.storage.path), study.name))


def is_run(location: str) -> bool:
    """Whether there is a run at a path or URL.

    Raises:
        StorageError: the URL cannot be read.
    """
    return mirror_at(location).objects.exists(META) if is_url(location) else (Path(location) / META).is_file()


def refuse_existing(location: str) -> None:
    """Raise :class:`RunFolderError` if there is anything at a path or URL."""
    run = is_run(location)
    if not run and not (_is_taken(location) if is_url(location) else Path(location).exists()):
        return
    raise RunFolderError(
        "the run folder exists already" if run else "something that is no run folder is in the way",
        where=location,
        expected="a study name that has no run yet",
        remedy=(
            f"continue it with: milp-ray resume {location}   or run anew under another name: name=<new name>"
        )
        if run
        else "choose another study name or storage.path",
    )


def _is_taken(url: str) -> bool:
    """Whether something that is no run is at a URL.

    First files without run.json, and a lease, are nobody's: a creation that was cut off left them.
    """
    names = [found.name for found in mirror_at(url).objects.list_below()]
    return any(name not in FIRST and not name.startswith(f"{LEASES}/") for name in names)
