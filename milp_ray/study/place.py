"""Where a study's run is, or would be, and whether something is there.

What is in a run is :mod:`milp_ray.study.run_folder`'s.
"""

from __future__ import annotations

from pathlib import Path

from milp_ray.config.models import Study
from milp_ray.errors import RunFolderError
from milp_ray.ids import child
from milp_ray.layout import FIRST, LEASES, META
from milp_ray.storage import is_url, joined, mirror_at


def place_of(study: Study) -> str:
    """Where a resolved study's run is, or would be: a path, or a URL."""
    if is_url(study.storage.path):
        return joined(study.storage.path, study.name)
    return str(child(Path(study.storage.path), study.name))


def is_run(place: str) -> bool:
    """Whether there is a run at a path or URL.

    Raises:
        StorageError: the URL cannot be read.
    """
    return mirror_at(place).objects.exists(META) if is_url(place) else (Path(place) / META).is_file()


def refuse_existing(place: str) -> None:
    """Raise :class:`RunFolderError` if there is anything at a path or URL."""
    run = is_run(place)
    if not run and not (_is_taken(place) if is_url(place) else Path(place).exists()):
        return
    raise RunFolderError(
        "the run folder exists already" if run else "something that is no run folder is in the way",
        where=place,
        expected="a study name that has no run yet",
        remedy=(
            f"continue it with: milp-ray resume {place}   or run anew under another name: name=<new name>"
        )
        if run
        else "choose another study name or storage.path",
    )


def _is_taken(url: str) -> bool:
    """Whether something that is no run is at a URL. A creation that was cut off left its first files without
    run.json, or a lease: they are nobody's."""
    names = [found.name for found in mirror_at(url).objects.list_below()]
    return any(name not in FIRST and not name.startswith(f"{LEASES}/") for name in names)
