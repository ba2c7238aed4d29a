"""The import path of workers: they import what the driver imports.

Ray puts the folder that a driver was started in, and its script's folder, in front of its workers'
``sys.path``, whether or not the driver itself imports from them. A ``peft.py`` that happens to lie
there then breaks every worker, and no driver. So a folder goes to the workers only if it stands
before Python's own library in the driver's path, as a script's folder and a notebook's do.

Ray also puts a submitted job's folder in front, for its driver and its workers. That folder is for
files, and for the modules of a script that the job runs. So workers forget it, unless milp_ray
itself comes from there.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.job_config import JobConfig

_HOOK = f"{__name__}.forget_job_folder"


class _DriversOwn(list[str]):
    """Ray's list of folders for the workers; it takes only those that the driver imports from."""

    def extend(self, folders: Iterable[str]) -> None:
        own = {str(Path(folder or os.curdir).resolve()) for folder in _in_front()}
        super().extend(folder for folder in folders if str(Path(folder).resolve()) in own)


def job_config() -> JobConfig:
    """The job config for ``ray.init``, with the driver's import path for its workers.

    It uses an internal of Ray, :class:`JobConfig`'s list. Where that is gone, Ray decides.
    """
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _DriversOwn()
    return config


def runtime_env() -> dict[str, Any] | None:
    """The runtime environment for ``ray.init``: workers forget a job's folder before any import."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    given = config.get("runtime_env") or {}
    if not given.get("working_dir") or "worker_process_setup_hook" in given:
        return None
    return {"worker_process_setup_hook": _HOOK}


def forget_job_folder() -> None:
    """Remove the folder that Ray unpacked for a job from this process's import path."""
    forget(os.curdir)


def forget(folder: str) -> None:
    """Remove a folder from this process's import path, unless milp_ray was imported from it."""
    removed = Path(folder).resolve()
    if Path(__file__).resolve().parents[3] != removed:
        sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != removed]


def _in_front() -> list[str]:
    library = sysconfig.get_path("stdlib")
    return sys.path[: sys.path.index(library)] if library in sys.path else sys.path
