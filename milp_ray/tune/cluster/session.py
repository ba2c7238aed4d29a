"""A Ray session for one run: a cluster that ``RAY_ADDRESS`` or the study names, or a private Ray.

A private Ray listens on 127.0.0.1 only, asks for a token that exists for this run alone, and
reports no usage statistics. It keeps its files in a private folder under the system's temporary
one, since sockets need short paths. It ends with the run, and its folder is removed, with what its
processes left in their temporary folder. A cluster that was there before is left running, with its
own security settings.

Ray reads several of these settings when it is first imported. So nothing above this module imports
Ray early.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import re
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from milp_ray.config.models import RaySettings
from milp_ray.errors import ClusterError, ClusterMismatchError, own_words
from milp_ray.tune.cluster.address import (
    AUTH_HINT,
    Address,
    ask,
    check_head,
    check_reachable,
    is_loopback_only,
    local_heads,
    only_head,
    parsed,
    wanted_address,
)
from milp_ray.tune.cluster.environment import (
    EVERYWHERE,
    LAUNCHERS,
    PRIVATE,
    Variable,
    environment,
    train_rows,
)
from milp_ray.tune.cluster.import_path import job_config, runtime_env
from milp_ray.tune.cluster.own_folder import OwnFolder, own_folder
from milp_ray.tune.cluster.ray_token import token_source
from milp_ray.tune.cluster.uv_hook import switch_off_uv_hook

_LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_ON_LOOPBACK = Variable(_LOOPBACK_SWITCH, "0", "Ray would look for the head at the machine's outer address")
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")


@dataclass(frozen=True)
class Session:
    """A live connection to Ray. ``folder``: that of a private Ray; None on a foreign cluster."""

    address: str
    folder: Path | None


_open: list[Session] = []  # the one of this process, if any


@contextlib.contextmanager
def ray_session(settings: RaySettings) -> Iterator[Session]:
    """Connect to Ray, or start it, for the length of a ``with`` block.

    Inside the block of another one it is that one. So what does several studies in one process
    starts Ray once: after a search, whose models have started JAX's threads, a fork may deadlock.

    Raises:
        ClusterError: the named cluster cannot be reached, or the local Ray cannot be started.
    """
    if _open:
        yield _open[-1]
        return
    address = wanted_address(settings.address)
    with environment((*EVERYWHERE, *LAUNCHERS, *train_rows(settings, foreign=address is not None))):
        _check_train()
        switch_off_uv_hook()
        _quiet()
        with _foreign(address) if address else _local(settings) as session:
            _open.append(session)
            try:
                yield session
            finally:
                _open.clear()


@contextlib.contextmanager
def _foreign(address: str) -> Iterator[Session]:
    # Where the mode is unset Ray chooses one, and a driver and a head can choose differently.
    mode = Variable("RAY_AUTH_MODE", "token" if _has_token() else "disabled", "see above", yields=True)
    with contextlib.ExitStack() as kept:
        kept.enter_context(environment([mode]))
        heads = local_heads() if address == "auto" else [parsed(address)]
        if address != "auto":
            check_reachable(heads[0])
        try:
            _refresh_if_imported()
            with _connecting(address):
                head = only_head(heads, ask) if address == "auto" else heads[0]
                check_head(head, ask)
                if is_loopback_only(head):
                    kept.enter_context(environment([_ON_LOOPBACK]))
                _refresh_if_imported()
                _join(head)
            yield Session(str(head), None)
        finally:
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown()


def _join(head: Address) -> None:
    import ray

    ray.init(
        address=str(head),
        job_config=job_config(),
        runtime_env=runtime_env(),
        log_to_driver=False,
        logging_level="ERROR",
    )


@contextlib.contextmanager
def _connecting(address: str) -> Iterator[None]:
    """Turn the errors of Ray's connecting into :class:`ClusterError`."""
    try:
        yield
    except ClusterError:
        raise
    except Exception as error:
        text = str(error)
        versions = _VERSIONS.findall(text)
        if "Version mismatch" in text and len(versions) == 2:
            (theirs, ours) = (f"Ray {ray} and Python {python}" for ray, python in versions)
            raise ClusterMismatchError(
                f"the cluster at {address} has {theirs}, this driver {ours}",
                expected="the same versions of Ray and Python in the cluster and here",
                remedy="install the cluster's versions here, or submit the run as a job (milp-ray submit)",
            ) from None
        raise ClusterError(
            f"cannot connect to Ray at {address}: {own_words(error)}",
            expected="a running Ray cluster of the same Ray and Python version",
            remedy=f"check ray.address / RAY_ADDRESS; {AUTH_HINT}",
        ) from None


def _has_token() -> bool:
    """Whether Ray would find a token."""
    found = token_source()
    return found.is_file() if isinstance(found, Path) else found is not None


@contextlib.contextmanager
def _local(settings: RaySettings) -> Iterator[Session]:
    with own_folder() as own, environment((*PRIVATE, *_own_variables(own))):
        _refresh_if_imported()
        try:
            _start(settings, own)
            _check_loopback()
            yield Session("local", own.path)
        finally:
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown()


def _own_variables(own: OwnFolder) -> list[Variable]:
    """Variables that name this session's token and its processes' temporary folder."""
    token = own.path / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    rows = [
        Variable("RAY_AUTH_MODE", "token", "anybody on this machine could run code in the session"),
        Variable("RAY_AUTH_TOKEN_PATH", str(token), "a token that exists for this session alone"),
    ]
    if scratch := own.scratch():
        rows.append(Variable("TMPDIR", str(scratch), "Ray's processes would leave sockets behind"))
    return rows


def _start(settings: RaySettings, own: OwnFolder) -> None:
    import ray

    try:
        ray.init(
            address="local",
            job_config=job_config(),
            include_dashboard=settings.dashboard,
            dashboard_host="127.0.0.1",
            _temp_dir=str(own.path / "r"),
            log_to_driver=False,
            logging_level="ERROR",
        )
    except Exception as error:
        own.keep = True
        raise ClusterError(
            f"a local Ray could not be started: {own_words(error)}",
            remedy=f"look into {own.path}/r/session_latest/logs, or give ray.address a running cluster",
        ) from None
    own.started = True


def _check_train() -> None:
    """Check that Ray Train, if a notebook has imported it before, is its second version."""
    train = sys.modules.get("ray.train")
    if train is not None and not hasattr(train, "UserCallback"):
        raise ClusterMismatchError(
            "this process has imported Ray Train's first version",
            where="RAY_TRAIN_V2_ENABLED",
            expected="Ray Train's second version, its default",
            remedy="unset RAY_TRAIN_V2_ENABLED, and restart the process",
        )


def _refresh_if_imported() -> None:
    """Have a Ray that was imported before read its settings again, as in tests and notebooks.

    It uses three internals of Ray. Where one is gone, the outcome is Ray's own default or a refused
    connection, and no opening to the network: the loopback switch is checked again once Ray is up.
    """
    if "ray" not in sys.modules:
        return
    raylet, constants = import_module("ray._raylet"), import_module("ray._private.ray_constants")
    switch = os.environ.get(_LOOPBACK_SWITCH)
    constants.ENABLE_RAY_CLUSTER = (  # type: ignore[attr-defined]
        switch in ("1", "true") if switch is not None else sys.platform not in ("win32", "darwin")
    )
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
    """Let Ray log errors only: the driver prints its progress itself, without trial tables."""
    for name in ("ray", "ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.ERROR)
