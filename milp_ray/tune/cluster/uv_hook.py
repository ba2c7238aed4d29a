"""Ray's hook for drivers that `uv run` started, switched off.

Ray would send the driver's whole working folder to the cluster, users' texts included, and keep it
there after the run. It would also start every worker by `uv run`, on nodes that may have no uv.
What a cluster needs is installed there, or travels with a job (:mod:`milp_ray.jobs.package`).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

_SWITCH = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"


def switch_off_uv_hook() -> None:
    """Let this process connect to Ray as if it had been started without `uv run`.

    It is called before the process connects. Ray reads the switch when it is imported, so in a Ray
    that was imported before its constant is set as well.
    """
    os.environ[_SWITCH] = "0"
    if "ray" in sys.modules:
        constants = import_module("ray._private.ray_constants")
        constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False  # type: ignore[attr-defined]
