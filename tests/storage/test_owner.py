"""What a lease says of its process, and when that process is known to be gone."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from milp_ray.storage.owner import Owner, Process


def owner_of(process: Process) -> Owner:
    return Owner("x", process, 3, 1.5)


def test_what_a_lease_says_is_read_back() -> None:
    owner = owner_of(Process.this())
    assert Owner.of("x", owner.content()) == owner


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": 2}', b"\xff", b'"a"'])
def test_what_is_no_lease(content: bytes) -> None:
    with pytest.raises(ValueError):
        Owner.of("x", content)


def test_a_lease_of_a_later_format_is_refused() -> None:
    values = json.loads(owner_of(Process.this()).content()) | {"format": 3}
    with pytest.raises(ValueError, match="format"):
        Owner.of("x", json.dumps(values).encode())


def test_a_living_process_is_known_whatever_became_of_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    me = Process.this()
    monkeypatch.setattr(psutil, "boot_time", lambda: 0.0)  # what it says moves with the wall clock
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 0.0)
    assert not Process.this().has_ended(owner_of(me))


def test_a_process_that_has_ended_is_known_by_its_id_or_its_start() -> None:
    me = Process.this()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert me.has_ended(owner_of(dataclasses.replace(me, pid=ended.pid)))
    assert me.has_ended(owner_of(dataclasses.replace(me, started=me.started - 5))), "its id is another's now"


def test_a_process_whose_end_nobody_asked_for_has_ended() -> None:
    me = Process.this()
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    started = psutil.Process(child.pid).create_time() - psutil.boot_time()
    assert me.has_ended(owner_of(dataclasses.replace(me, pid=child.pid, started=started)))
    child.wait()


def test_another_users_process_that_is_hidden_counts_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    me = Process.this()

    def kill(pid: int, number: int) -> None:
        raise PermissionError

    def hidden(self: Path, **words: str) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(Path, "read_text", hidden)
    assert not me.has_ended(owner_of(dataclasses.replace(me, pid=1)))


def test_of_another_machine_nothing_is_known() -> None:
    me = Process.this()
    assert not me.has_ended(owner_of(dataclasses.replace(me, machine="another", pid=2**22 + 1)))


def test_a_lease_of_an_earlier_version_is_read() -> None:
    me = Process.this()
    started = psutil.Process().create_time()
    first = {
        "host": me.host, "machine": me.machine, "pid": me.pid, "started": started, "beat": 7, "written": 2.5,
    }  # fmt: skip
    owner = Owner.of("x", json.dumps(first).encode())
    assert (owner.heartbeat, owner.process.boot, owner.written) == (7, me.boot, 2.5)
    assert not me.has_ended(owner)
    assert me.has_ended(Owner.of("x", json.dumps(first | {"started": started - 5}).encode()))
