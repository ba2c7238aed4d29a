"""Proxies of the environment, on the way to a cluster's job API.

Ray's client sends its requests, token included, through the proxy that ``http_proxy`` and its like
name. For this machine's own addresses that is never meant; for others it may be the only way, or
what is in the way.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from urllib.parse import urlsplit

import psutil

_EXCEPTIONS = ("no_proxy", "NO_PROXY")


def go_direct(address: str) -> None:
    """Have requests to ``address`` use no proxy, if it is an address of this machine."""
    host = urlsplit(address).hostname or ""
    if not is_own(host):
        return
    # The one in small letters counts where both are set.
    given = next((os.environ[name] for name in _EXCEPTIONS if os.environ.get(name)), "")
    if host not in (word.strip() for word in given.split(",")):
        value = ",".join(word for word in (given, host) if word)
        os.environ.update(dict.fromkeys(_EXCEPTIONS, value))


def is_own(host: str) -> bool:
    """Whether a name or number stands for this machine, and for nothing else."""
    try:
        found = {ipaddress.ip_address(ip.partition("%")[0]) for ip in _resolved(host)}
    except (OSError, UnicodeError):
        return False
    own = {
        ipaddress.ip_address(one.address.partition("%")[0])
        for addresses in psutil.net_if_addrs().values()
        for one in addresses
        if one.family in (socket.AF_INET, socket.AF_INET6)
    }
    return bool(found) and all(ip.is_loopback or ip in own for ip in found)


def in_the_way(address: str) -> str | None:
    """The variable that names the proxy on the way to ``address``; what it holds is secret."""
    from requests.utils import get_environ_proxies, select_proxy

    if not select_proxy(address, get_environ_proxies(address)):
        return None
    scheme = urlsplit(address).scheme
    names = (f"{kind}_proxy" for kind in (scheme, "all"))
    spelt = (name for pair in names for name in (pair, pair.upper()))
    return next((name for name in spelt if os.environ.get(name)), "this system's settings")


def _resolved(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM) if host else []
    return [str(address[0]) for *_, address in found]
