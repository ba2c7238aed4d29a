"""Which Ray head an address means, and whether one answers there.

Ray itself would wait for minutes. The first answer tells what is there: a head (and whether it
takes the token), another gRPC server, an HTTP server (mostly the dashboard), a server that says
nothing, or none.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from milp_ray.errors import ClusterError

AUTH_HINT = "set RAY_AUTH_MODE (token or disabled) and RAY_AUTH_TOKEN_PATH to what the cluster uses"
_REACH_SECONDS, _ANSWER_SECONDS = 10.0, 10.0
_LONGEST_ANSWER = 2000
_CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # the first thing that a driver asks a head
_WHERE = "ray.address / RAY_ADDRESS"

Kind = Literal["head", "refused", "dashboard", "http", "grpc", "silent", "other"]


@dataclass(frozen=True)
class Address:
    """Host and port of a head."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def wanted_address(given: str | None) -> str | None:
    """The address that a study and RAY_ADDRESS ask for; None: a private Ray.

    As in Ray, ``auto`` means the head that RAY_ADDRESS names, if it names one.

    Raises:
        ClusterError: a driver cannot join what has this address.
    """
    environment = os.environ.get("RAY_ADDRESS")
    address = given or environment or None
    if address == "auto" and environment and "://" not in environment:
        address = environment
    if address == "local":
        return None
    if address and address.startswith("ray://"):
        raise ClusterError(
            "Ray's client protocol (ray://) keeps the driver's state on the other side",
            where=f"ray.address {address}",
            expected="host:port of the head, or auto on a machine of the cluster",
            remedy="run milp-ray on the cluster itself, or submit the run as a job (milp-ray submit)",
        )
    if address and address.startswith(("http://", "https://")):
        raise ClusterError(
            "that is the address of a dashboard, to which jobs are submitted",
            where=f"{_WHERE} {address}",
            expected="host:port of the head, or auto on a machine of the cluster",
            remedy="submit the run as a job (milp-ray submit), or unset RAY_ADDRESS for a private Ray",
        )
    return address


def parsed(text: str) -> Address:
    """Host and port of ``host:port``.

    Raises:
        ClusterError: the text is no such address.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:  # an IPv6 address must be in brackets
        host = ""
    if not (colon and host) or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65536:
        raise ClusterError(
            "that is no address",
            where=f"{_WHERE} {text}",
            expected="host:port of a running Ray head, or auto on a machine of the cluster",
            remedy="the port of a head is 6379 unless it was started with another one",
        )
    return Address(host, int(port))


def local_heads() -> list[Address]:
    """The heads of this machine's Ray nodes, read from their processes; also private ones."""
    found: set[Address] = set()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if Path(words[0]).name != "raylet":
            continue
        for word in words:
            flag, _, value = word.partition("=")
            if flag == "--gcs-address" and value:
                found.add(parsed(value))
    return sorted(found, key=str)


def only_head(heads: list[Address], probe: Callable[[Address], Kind]) -> Address:
    """The head that ``auto`` means: the one on this machine that takes this driver's token.

    Raises:
        ClusterError: no head takes it, or several do and none of them was started last.
    """
    ours = [head for head in heads if probe(head) == "head"]
    if latest := [head for head in ours if str(head) == _started_last()]:
        ours = latest
    if len(ours) == 1:
        return ours[0]
    names = ", ".join(str(head) for head in ours or heads)
    if ours:
        fact, remedy = f"several Ray heads run on this machine: {names}", "name one of them as host:port"
    elif heads:
        fact, remedy = f"no Ray head of this machine takes this driver's token ({names})", AUTH_HINT
    else:
        fact = "no Ray head runs on this machine"
        remedy = "name the head as host:port, or leave ray.address and RAY_ADDRESS out for a private Ray"
    raise ClusterError(
        fact, where=f"{_WHERE} auto", expected="a machine of a running Ray cluster", remedy=remedy
    )


def _started_last() -> str:
    """The address that `ray start` wrote last, in its default folder."""
    folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray"
    try:
        return (folder / "ray_current_cluster").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def check_reachable(address: Address) -> None:
    """Check that something listens at an address, for ten seconds at most.

    Raises:
        ClusterError: nothing listens there.
    """
    try:
        socket.create_connection((address.host, address.port), timeout=_REACH_SECONDS).close()
    except (OSError, UnicodeError) as error:
        raise ClusterError(
            f"nothing answers at {address}: {error}",
            expected="the address of a running Ray head, host:port",
            remedy="check ray.address / RAY_ADDRESS, and that this machine may reach it",
        ) from None


def check_head(address: Address, probe: Callable[[Address], Kind]) -> None:
    """Check that a Ray head answers at an address, and takes the token.

    Raises:
        ClusterError: something else answers, or the token is refused.
    """
    kind = probe(address)
    if kind == "head":
        return
    if kind == "refused":
        raise ClusterError(
            f"the Ray head at {address} refuses the token"
            if _has_mode("token")
            else f"the Ray head at {address} asks for a token",
            expected="the token that the cluster was started with",
            remedy=AUTH_HINT,
        )
    what = {
        "dashboard": "the dashboard of a Ray cluster answers",
        "http": "a server of HTTP answers",
        "grpc": "a server of gRPC answers that is no Ray head (Ray's client server, 10001, is one)",
        "silent": f"something takes connections and says nothing for {_ANSWER_SECONDS:.0f} s",
        "other": "something answers that is no Ray head",
    }[kind]
    tls = "" if kind == "dashboard" else "; does the cluster use TLS (RAY_USE_TLS)?"
    raise ClusterError(
        f"at {address} {what}",
        expected="a Ray head: its port is 6379 by default, 8265 is the dashboard's",
        remedy=f"check ray.address / RAY_ADDRESS, or submit the run to the dashboard (milp-ray submit){tls}",
    )


def ask(address: Address) -> Kind:
    """What answers at an address, to this process's token and TLS settings, within ten seconds."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel

    channel = init_grpc_channel(str(address), [("grpc.enable_http_proxy", 0)])
    try:
        method = channel.unary_unary(_CLUSTER_ID, request_serializer=bytes, response_deserializer=bytes)
        method(b"", timeout=_ANSWER_SECONDS)
    except grpc.RpcError as error:
        code = error.code()
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return "refused"
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return "grpc"
        return "silent" if code is grpc.StatusCode.DEADLINE_EXCEEDED else _without_grpc(address)
    else:
        return "head"
    finally:
        channel.close()


def _without_grpc(address: Address) -> Kind:
    """What answers at an address that does not speak gRPC, however slowly it answers."""
    deadline, text = time.monotonic() + _ANSWER_SECONDS, b""
    request = f"GET /api/version HTTP/1.0\r\nHost: {address}\r\n\r\n".encode()
    with (
        contextlib.suppress(OSError),
        socket.create_connection((address.host, address.port), timeout=_ANSWER_SECONDS) as connection,
    ):
        connection.sendall(request)
        while len(text) < _LONGEST_ANSWER and (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            part = connection.recv(_LONGEST_ANSWER)
            if not part:
                break
            text += part
    if not text.startswith(b"HTTP/"):
        return "other"
    is_rays = b"ray_version" in text or b"authentication token" in text
    return "dashboard" if is_rays else "http"


def _has_mode(mode: str) -> bool:
    return os.environ.get("RAY_AUTH_MODE", "").lower() == mode


def is_loopback_only(address: Address) -> bool:
    """Whether the head is on this machine and listens on loopback alone.

    Ray turns 127.0.0.1 into the machine's outer address, where such a head does not answer. So the
    driver's Ray must be told to stay on loopback as well.
    """
    if address.host not in ("127.0.0.1", "localhost"):
        return False
    listening = {
        ipaddress.ip_address(found.laddr.ip.removeprefix("::ffff:"))
        for found in psutil.net_connections(kind="tcp")
        if found.status == psutil.CONN_LISTEN and found.laddr.port == address.port
    }
    return bool(listening) and all(ip.is_loopback for ip in listening)
