"""Where ranks meet: a private file on one machine, else a socket bound to their own address."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from milp_ray.model.parallel.rendezvous import Rendezvous, connect_store, listen, open_rendezvous


@pytest.fixture(autouse=True)
def scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def listening() -> set[tuple[str, int]]:
    found = psutil.Process().net_connections(kind="tcp")
    return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


def meet(address: str) -> bytes:
    """What rank 0 tells rank 1."""
    with ThreadPoolExecutor() as pool:
        first = pool.submit(connect_store, Rendezvous(address, 0, 2, timeout=20))
        second = pool.submit(connect_store, Rendezvous(address, 1, 2, timeout=20))
        first.result().set("word", "here")
        return bytes(second.result().get("word"))


def test_ranks_of_one_machine_meet_where_nobody_listens_and_only_their_owner_enters() -> None:
    before = listening()
    address = Path(open_rendezvous("127.0.0.1", one_machine=True))
    found = address.parents[1].stat()
    assert stat.S_IMODE(found.st_mode) == 0o700 and found.st_uid == os.getuid()
    assert meet(str(address)) == b"here" and listening() == before


def test_ranks_of_several_machines_meet_at_their_own_address_alone() -> None:
    before = listening()
    address = open_rendezvous("127.0.0.2", one_machine=False)
    port = int(address.rpartition(":")[2])
    assert listening() - before == {("127.0.0.2", port)}
    with pytest.raises(OSError, match="in use"):
        listen("127.0.0.2", port)  # told, and so kept
    first = connect_store(Rendezvous(address, 0, 1, timeout=20))
    assert listening() - before == {("127.0.0.2", port)}, "PyTorch's server is our socket"
    second = connect_store(Rendezvous(address, 1, 1, timeout=20))
    first.set("word", "here")
    assert second.get("word") == b"here"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_machine_without_a_temporary_folder_opens_a_socket(scratch: Path) -> None:
    tempfile.tempdir = str(scratch / "nowhere")
    assert open_rendezvous("127.0.0.1", one_machine=True).startswith("127.0.0.1:")


def test_a_later_group_takes_the_place_of_an_earlier_one(scratch: Path) -> None:
    for _ in range(2):
        address = Path(open_rendezvous("127.0.0.1", one_machine=True))
    (left,) = scratch.iterdir()
    assert address.is_relative_to(left)
