"""Connects to a Ray cluster's job API: address, token, one error where it cannot be had."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from milp_ray.errors import ClusterError, MilpRayError, own_words
from milp_ray.jobs.proxies import go_direct, in_the_way
from milp_ray.tune.cluster.ray_token import token_source

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


class JobError(MilpRayError):
    """There is no such job, or what is asked of the job client is not allowed."""


def token_of(
    file: Path | None, environ: Mapping[str, str] = os.environ, home: Path | None = None
) -> str | None:
    """The cluster's token: from a file, else where Ray looks for it.

    Where Ray looks says :mod:`milp_ray.tune.cluster.ray_token`.

    Raises:
        JobError: what is there is no token.
    """
    source = file or token_source(environ, home)
    if source is None:
        return None
    if isinstance(source, str):
        return _checked_token(source, "RAY_AUTH_TOKEN")
    try:
        return _checked_token(source.read_text(encoding="utf-8").strip(), str(source))
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(
            f"the token cannot be read: {type(error).__name__}",
            where=str(source),
            expected="a file that holds the cluster's token",
            remedy="check --token-file or RAY_AUTH_TOKEN_PATH",
        ) from None


def _checked_token(token: str, where: str) -> str:
    if not token or not token.isascii() or any(sign.isspace() for sign in token):
        fact = "is not a token" if token else "the token is empty"
        raise JobError(fact, where=where, expected="the cluster's token, one word")
    return token


def connect(address: str | None, token: str | None, *, insecure: bool = False) -> JobSubmissionClient:
    """A client of the cluster at ``address``.

    Args:
        address: http(s)://host:port of the dashboard; None: RAY_API_SERVER_ADDRESS, else
            RAY_ADDRESS.
        token: sent as a bearer token.
        insecure: allows an address of another machine without a token.

    Raises:
        JobError: no usable address, or another machine's without a token.
        ClusterError: nothing answers there, or the token is refused.
    """
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise JobError(
            f"{found!r} is not the address of a dashboard" if found else "no address",
            expected="http://host:8265 or https://host",
            remedy="name it with --address, or in RAY_ADDRESS",
        )
    if parts.username or parts.password:
        raise JobError("a password in the address", remedy="use a token: --token-file, RAY_AUTH_TOKEN_PATH")
    if token is None and not insecure and not _is_loopback(parts.hostname):
        raise JobError(
            f"{parts.hostname} is another machine, and there is no token",
            expected="a cluster that asks for a token: whoever reaches one without can run anything on it",
            remedy="set --token-file or RAY_AUTH_TOKEN_PATH, or insist with --insecure",
        )
    from ray.job_submission import JobSubmissionClient

    for name in (
        "dashboard.modules.dashboard_sdk",
        "dashboard.modules.job.sdk",
        "_private.runtime_env.packaging",
    ):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    go_direct(found)
    headers = {"Authorization": f"Bearer {token}"} if token else None
    with answering(found), _address_of_ours(found):
        return _speaking(lambda: JobSubmissionClient(found, headers=headers))


def _speaking(begin: Callable[[], JobSubmissionClient]) -> JobSubmissionClient:
    """The client, unless what answers says something that Ray's dashboard does not."""
    import requests

    try:
        return begin()
    except requests.exceptions.JSONDecodeError:
        raise RuntimeError("it answers in words that are not of Ray's dashboard") from None
    except requests.exceptions.RequestException:
        raise
    except (KeyError, TypeError, ValueError):
        raise RuntimeError("it answers in words that are not of Ray's dashboard") from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _address_of_ours(address: str) -> Iterator[None]:
    """Ray prefers the environment to the address that it is given."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def answering(address: str) -> Iterator[None]:
    """Turn what goes wrong on the way to the cluster into :class:`ClusterError`."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise _refused(address, error.message) from None
    except (ConnectionError, requests.exceptions.RequestException) as error:
        raise _no_answer(address, f"the cluster does not answer ({_kind(error)})") from None
    except RuntimeError as error:
        raise _no_answer(address, f"the cluster refused: {own_words(error)}") from None


def _kind(error: Exception) -> str:
    """A failed request's kind, with the status that it was answered with, if any."""
    if "SOCKS" in str(error):  # the proxy's protocol takes a package more
        return own_words(error)
    response = getattr(error, "response", None)
    status = f", HTTP {response.status_code}" if response is not None else ""
    return f"{type(error).__name__}{status}"


def _refused(address: str, message: str) -> ClusterError:
    """The error for an answer of 401 or 403, which need not be Ray's."""
    answer = message.partition("\n\n")[0]  # behind it, Ray's client explains what it takes any of them for
    if "authentication token" not in answer:
        status = 401 if answer.startswith("Authentication required") else 403
        return _no_answer(address, f"the request is refused with HTTP {status}, not in Ray's words")
    return ClusterError(
        "the cluster refuses the token",
        where=address,
        expected="the token that the cluster was started with",
        remedy="check --token-file, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH",
    )


def _no_answer(address: str, fact: str) -> ClusterError:
    remedy = "check --address or RAY_ADDRESS, and that this machine may reach it"
    if (proxy := in_the_way(address)) is not None:
        host = urlsplit(address).hostname
        fact = f"{fact}; the request went through the proxy of {proxy}"
        remedy = f"put {host} into no_proxy if it can be reached without the proxy; else {remedy}"
    return ClusterError(fact, where=address, expected="the dashboard of a running Ray head", remedy=remedy)
