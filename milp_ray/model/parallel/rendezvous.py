"""The rendezvous of a process group: the store through which its ranks, and no others, meet.

PyTorch's own store listens on every interface and asks for no token. Where all ranks are on one
machine, their store is a file in a folder of mode 0700. Ranks on several machines need a socket: it
is bound to the one address by which the ranks know each other, before its port is told, so that
nobody else can take the port meanwhile. No Ray here.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
from dataclasses import dataclass

# Public as torch.distributed.TCPStore and so on, which declares no types.
from torch._C._distributed_c10d import FileStore, Store, TCPStore

from milp_ray.storage import Scratch

_KIND = "milp-ranks-"


@dataclass(frozen=True)
class Rendezvous:
    """Where ranks meet.

    Attributes:
        address: what rank 0 opened: the path of a file, or host:port.
        rank, size: see :class:`~milp_ray.model.parallel.group.Group`.
        timeout: seconds after which a rank that others wait for counts as hung.
    """

    address: str
    rank: int
    size: int
    timeout: float = 120.0


class _Opened:
    """What rank 0 has opened: a file in a folder of its own, or a listening socket."""

    def __init__(self, host: str, *, one_machine: bool) -> None:
        self._scratch: Scratch | None = None
        self.listening: socket.socket | None = None
        if one_machine:
            with contextlib.suppress(OSError):  # no temporary folder: use a socket
                self._scratch = Scratch(_KIND)
        if self._scratch is not None:
            self.address = str(self._scratch.room / "store")
        else:
            self.listening = listen(host)
            self.address = f"{host}:{self.listening.getsockname()[1]}"

    def close(self) -> None:
        if self.listening is not None:
            self.listening.close()
        if self._scratch is not None:
            self._scratch.close()


_opened: list[_Opened] = []  # at most one: a process belongs to one group


def open_rendezvous(host: str, *, one_machine: bool) -> str:
    """Open the rendezvous of a group, in the process that will be rank 0, before it joins.

    Args:
        host: the address by which other machines reach this one; nothing listens on another.
        one_machine: whether all ranks share this machine and its files.

    Returns:
        The address for every rank's :class:`Rendezvous`.

    Raises:
        OSError: this machine has no such address.
    """
    while _opened:
        _opened.pop().close()
    _opened.append(_Opened(host, one_machine=one_machine))
    return _opened[0].address


def connect_store(rendezvous: Rendezvous) -> Store:
    """The store of a group, once rank 0 has it; rank 0 takes over what it has opened.

    Raises:
        torch.distributed.DistError: not all came in time.
        OSError: as rank 0, without :func:`open_rendezvous` before: the port is another's.
    """
    timeout = datetime.timedelta(seconds=rendezvous.timeout)
    host, colon, port = rendezvous.address.rpartition(":")
    if not colon or not port.isdecimal():
        store = FileStore(rendezvous.address, rendezvous.size)
        store.set_timeout(timeout)
        return store
    if rendezvous.rank:
        return TCPStore(host, int(port), rendezvous.size, False, timeout)
    own = next((opened for opened in _opened if opened.address == rendezvous.address), None)
    listening = own.listening if own is not None and own.listening is not None else listen(host, int(port))
    return TCPStore(  # which closes the socket in the end
        host, int(port), rendezvous.size, True, timeout, master_listen_fd=listening.detach()
    )


def listen(host: str, port: int = 0) -> socket.socket:
    """A socket that listens at one address of this machine; port 0: a free one.

    Raises:
        OSError: this machine has no such address, or the port is another's.
    """
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    return socket.create_server((host, port), family=family)
