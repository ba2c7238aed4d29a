"""A Ray session for one run: the cluster that ``RAY_ADDRESS`` or the study names, else one of its own.

A Ray of its own listens on 127.0.0.1 only, asks for a token that exists for this run alone, reports no usage
statistics, keeps its files in a private folder under the system's temporary one (sockets need short paths),
and ends with the run; what its processes leave in their temporary folder, which is in there as well, goes
with it. A cluster that was there before is left running, with its own security settings.
Ray reads several of these settings when it is first imported, so nothing above this module imports Ray early.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import ipaddress
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import psutil

from milp_ray.config.models import RaySettings
from milp_ray.errors import ClusterError
from milp_ray.storage import abandoned, held
from milp_ray.tune.ray_token import token_source
from milp_ray.tune.uv_hook import switch_off_uv_hook

_REACH_SECONDS = 10.0
_LONGEST_PARENT = 28
_PREFIX, _OWNER = "mr-", "pid"
_SCRATCH = "t"  # short, for sockets
_REMNANT_SECONDS = 600.0
_LOOKS, _LOOK_SECONDS = 20, 0.1
_LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_AUTH_HINT = "set RAY_AUTH_MODE (token or disabled) and RAY_AUTH_TOKEN_PATH to what the cluster uses"


@dataclass(frozen=True)
class Session:
    """A live connection to Ray. ``folder`` is the local session's folder; None on a foreign cluster."""

    address: str
    folder: Path | None


@contextlib.contextmanager
def ray_session(settings: RaySettings) -> Iterator[Session]:
    """Connect to, or start, Ray for the length of a ``with`` block.

    Raises:
        ClusterError: the named cluster cannot be reached, or the local Ray cannot be started.
    """
    address = settings.address or os.environ.get("RAY_ADDRESS") or None
    if address == "local":
        address = None
    if address and address.startswith("ray://"):
        raise ClusterError(
            "Ray's client protocol (ray://) keeps the driver's state on the other side",
            where=f"ray.address {address}",
            expected="host:port of the head, or auto on a machine of the cluster",
            remedy="run milp-ray on the cluster itself, for instance by ray job submit",
        )
    if address and address.startswith(("http://", "https://")):
        raise ClusterError(
            "that is the address of a dashboard, to which jobs are submitted",
            where=f"ray.address / RAY_ADDRESS {address}",
            expected="host:port of the head, or auto on a machine of the cluster",
            remedy="submit the run as a job (milp-ray submit), or unset RAY_ADDRESS for a private Ray",
        )
    switch_off_uv_hook()
    with _foreign(address) if address else _local(settings) as session:
        yield session


@contextlib.contextmanager
def _foreign(address: str) -> Iterator[Session]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Left unset, Ray decides by itself, and a driver and a head can decide differently.
    os.environ.setdefault("RAY_AUTH_MODE", "token" if _has_token() else "disabled")
    _quiet()
    _check_reachable(address)
    if _is_loopback_only(address):
        _set_environment({_LOOPBACK_SWITCH: "0"})
        _refresh_if_imported()
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
        yield Session(address, None)
    finally:
        ray.shutdown()


def _has_token() -> bool:
    """Whether Ray would find a token."""
    found = token_source()
    return found.is_file() if isinstance(found, Path) else found is not None


def _check_reachable(address: str) -> None:
    """Ray itself waits for minutes for an address where nothing listens."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto" and the like: Ray says at once whether there is one
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"nothing answers at {address}: {error}",
            expected="the address of a running Ray head, host:port",
            remedy="check ray.address / RAY_ADDRESS, and that this machine may reach it",
        ) from None


def _is_loopback_only(address: str) -> bool:
    """Whether the head at ``address`` is on this machine and listens on loopback alone.

    Ray turns 127.0.0.1 into the machine's outer address, where such a head cannot be found, unless it is told
    to stay on loopback as well.
    """
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdecimal():
        return False
    listening = {
        ipaddress.ip_address(found.laddr.ip.removeprefix("::ffff:"))
        for found in psutil.net_connections(kind="tcp")
        if found.status == psutil.CONN_LISTEN and found.laddr.port == int(port)
    }
    return bool(listening) and all(ip.is_loopback for ip in listening)


@dataclass
class _OwnFolder:
    """The folder of a private Ray. ``started``: Ray ran, and ends with the session. ``keep``: for logs."""

    path: Path
    started: bool = False
    keep: bool = False


@contextlib.contextmanager
def _own_folder() -> Iterator[_OwnFolder]:
    """A new folder, which is removed in the end."""
    # Paths of Ray's sockets must stay under 107 characters, which a long TMPDIR would break.
    parent = tempfile.gettempdir() if len(tempfile.gettempdir()) <= _LONGEST_PARENT else "/tmp"
    _sweep(Path(parent))
    own = _OwnFolder(Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)))  # 0700; Ray opens its own to all
    # Interrupted while it starts, Ray ends its processes when this one exits. What was registered before it
    # comes after it.
    remove = functools.partial(_remove, own.path)
    atexit.register(remove)
    owner = held(own.path / _OWNER, str(os.getpid()))  # the number is for people
    try:
        yield own
    finally:
        if not own.keep:
            shutil.rmtree(own.path, ignore_errors=True)
        if own.keep or own.started:
            atexit.unregister(remove)
        owner.close()


@contextlib.contextmanager
def _own_environment(folder: Path) -> Iterator[None]:
    """What a private Ray and its processes read of the environment; as it was, in the end."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    wanted: dict[str, str | None] = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_AUTH_TOKEN": None,  # it would win over the path
        # Despite its name this is Ray's only switch that keeps every server of a session on the loopback
        # interface; an explicit node address of 127.0.0.1 is replaced by the machine's outer one.
        _LOOPBACK_SWITCH: "0",
        # A process that Ray started must not find the address of another cluster.
        "RAY_ADDRESS": None,
    }
    if folder.parent == Path(tempfile.gettempdir()):  # else the other one may have more room
        # Ray ends its processes with SIGKILL, and its dashboard, for one, leaves a socket in a folder then.
        scratch = folder / _SCRATCH
        scratch.mkdir()
        wanted["TMPDIR"] = str(scratch)
    saved = {name: os.environ.get(name) for name in wanted}
    _set_environment(wanted)
    try:
        yield
    finally:
        _set_environment(saved)


@contextlib.contextmanager
def _local(settings: RaySettings) -> Iterator[Session]:
    with _own_folder() as own, _own_environment(own.path):
        _refresh_if_imported()
        _quiet()
        try:
            _start(settings, own)
            _check_loopback()
            yield Session("local", own.path)
        finally:
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown()


def _start(settings: RaySettings, own: _OwnFolder) -> None:
    import ray

    try:
        ray.init(
            address="local",
            include_dashboard=settings.dashboard,
            dashboard_host="127.0.0.1",
            _temp_dir=str(own.path / "r"),
            log_to_driver=False,
            logging_level="ERROR",
        )
    except Exception as error:
        own.keep = True
        raise ClusterError(
            f"a local Ray could not be started: {_first_line(error)}",
            remedy=f"look into {own.path}/r/session_latest/logs, or give ray.address a running cluster",
        ) from None
    own.started = True


def _sweep(parent: Path) -> None:
    """Remove what killed runs of this user left behind: their Ray is gone with them."""
    for old in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if old.stat().st_uid == os.getuid() and (abandoned(old / _OWNER) or _is_remnant(old)):
                shutil.rmtree(old, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove it for good: processes that are ending write into it for a moment."""
    for _ in range(_LOOKS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_LOOK_SECONDS)


def _is_remnant(folder: Path) -> bool:
    """Whether a process of Ray that was ending wrote into a session's folder after that had been removed."""
    old = time.time() - folder.stat().st_mtime > _REMNANT_SECONDS
    return old and [path.name for path in folder.iterdir()] == ["r"]


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _refresh_if_imported() -> None:
    """Ray takes these settings at import. The driver sets them first; tests and notebooks import Ray first.

    Uses three internals of Ray; where one is gone, Ray's own default or a refused connection is the outcome,
    never a wider opening: the loopback switch is checked again once Ray is up.
    """
    if "ray" not in sys.modules:
        return
    raylet, constants = import_module("ray._raylet"), import_module("ray._private.ray_constants")
    constants.ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined]
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _check_loopback() -> None:
    from ray.util import get_node_ip_address

    if not ipaddress.ip_address(get_node_ip_address()).is_loopback:
        raise ClusterError(
            "the local Ray listens on more than this machine",
            expected="127.0.0.1 only",
            remedy="use the Ray version in constraints.txt, or give ray.address a cluster of your own",
        )


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
