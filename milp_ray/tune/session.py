"""A Ray session for one run: the cluster that ``RAY_ADDRESS`` or the study names, else one of its own.

A Ray of its own listens on 127.0.0.1 only, asks for a token that exists for this run alone, reports no usage
statistics, keeps its files in a private folder under the system's temporary one (sockets need short paths),
and ends with the run. A cluster that was there before is left running, with its own security settings.
Ray reads several of these settings when it is first imported, so nothing above this module imports Ray early.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from milp_ray.config.models import RaySettings
from milp_ray.errors import ClusterError

_AUTH_HINT = "set RAY_AUTH_MODE (token or disabled) and RAY_AUTH_TOKEN_PATH to what the cluster uses"


@dataclass(frozen=True)
class Session:
    """A live connection to Ray. ``folder`` is the local session's folder; None on a foreign cluster."""

    address: str
    cpus: float
    gpus: float
    folder: Path | None


@contextlib.contextmanager
def ray_session(settings: RaySettings) -> Iterator[Session]:
    """Connect to, or start, Ray for the length of a ``with`` block.

    Raises:
        ClusterError: the named cluster cannot be reached, or the local Ray cannot be started.
    """
    address = settings.address or os.environ.get("RAY_ADDRESS") or None
    if address in ("local", "auto") and settings.address is None:
        address = None if address == "local" else address
    with _foreign(address) if address else _local(settings) as session:
        yield session


@contextlib.contextmanager
def _foreign(address: str) -> Iterator[Session]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _quiet()
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        raise ClusterError(
            f"cannot connect to Ray at {address}: {_first_line(error)}",
            expected="a running Ray cluster of the same Ray and Python version",
            remedy=f"check ray.address / RAY_ADDRESS; {_AUTH_HINT}",
        ) from None
    try:
        total = ray.cluster_resources()
        yield Session(address, float(total.get("CPU", 0)), float(total.get("GPU", 0)), None)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _local(settings: RaySettings) -> Iterator[Session]:
    folder = Path(tempfile.mkdtemp(prefix="milp-ray-"))  # mode 0700
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # Despite its name this is Ray's only switch that keeps every server of a session on the loopback
        # interface; an explicit node address of 127.0.0.1 is replaced by the machine's outer one.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # A process that Ray started must not find an address of another cluster.
        "RAY_ADDRESS": "",
    }
    _check_not_imported(wanted)
    saved = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    del os.environ["RAY_ADDRESS"]
    _quiet()
    clean = False
    try:
        import ray

        try:
            ray.init(
                address="local",
                include_dashboard=settings.dashboard,
                dashboard_host="127.0.0.1",
                _temp_dir=str(folder),
                log_to_driver=False,
                logging_level="ERROR",
            )
        except Exception as error:
            raise ClusterError(
                f"a local Ray could not be started: {_first_line(error)}",
                remedy=f"look into {folder}/session_latest/logs, or give ray.address a running cluster",
            ) from None
        total = ray.cluster_resources()
        yield Session("local", float(total.get("CPU", 0)), float(total.get("GPU", 0)), folder)
        clean = True
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if clean:
            shutil.rmtree(folder, ignore_errors=True)


def _check_not_imported(wanted: dict[str, str]) -> None:
    """Ray takes the loopback switch at import: importing it earlier would silently widen what it binds to."""
    if "ray" not in sys.modules:
        return
    from ray._private import ray_constants

    if ray_constants.ENABLE_RAY_CLUSTER:
        # Tests and notebooks import Ray first; the constant is read at call time, so setting it is enough.
        ray_constants.ENABLE_RAY_CLUSTER = False


def _quiet() -> None:
    """Ray Tune's own output off: the driver prints its progress itself, without trial tables."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    # The event logs are the truth; Tune's snapshot is only for its own `tune.ExperimentAnalysis`.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    for name in ("ray", "ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
