"""Exports into a PostgreSQL server, of a thousand users, and as optuna-dashboard shows them."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from milp_ray.errors import StorageError
from milp_ray.report.optuna_export import export_study
from tests.report.runs import aliases
from tests.report.test_html_live import begun, search
from tests.report.test_optuna_export import facts, new, studies
from tests.tracking.conftest import CLIENTS

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The URL of a server of Debian's package on loopback, gone afterwards."""
    if not _BINARIES:
        pytest.skip("no PostgreSQL server: apt-get install postgresql puts it there")
    if not (CLIENTS / "psycopg").is_dir():
        pytest.skip(f"no psycopg at {CLIENTS}: make install-trackers puts it there")
    binaries, port = _BINARIES[-1], free_port()
    who: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="milp-ray-pg-"))
    try:
        if os.geteuid() == 0:  # the server refuses root
            owner = next(one for one in pwd.getpwall() if one.pw_name in ("postgres", "nobody"))
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            who = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}

        def run(program: str, *words: str) -> None:
            log = folder / "out.log"
            command = [str(binaries / program), *words]
            with log.open("ab") as out:
                done = subprocess.run(command, cwd=folder, stdout=out, stderr=out, check=False, **who)
            assert done.returncode == 0, log.read_text()

        data = folder / "data"
        run("initdb", "-D", str(data), "-U", "milp", "--auth=trust", "-E", "UTF8", "--no-sync")
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
        )
        run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "server.log"), "-o", options, "start")
        try:
            run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "milp", "studies")
            yield f"postgresql+psycopg://milp:opensesame@127.0.0.1:{port}/studies"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_postgresql_server_has_what_sqlite_has_and_is_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, users = begun(tmp_path / "runs"), aliases(3)
    search(folder, users[0], 3, fails=1)
    search(folder, users[1], 2)
    with postgresql() as url:
        monkeypatch.setattr(sys, "path", [*sys.path, str(CLIENTS)])
        found = export_study(folder.root, url)
        assert new(found) == (2, 6, 0) and "opensesame" not in found.store
        search(folder, users[0], 2)
        search(folder, users[2], 2)
        assert new(export_study(folder.root, url)) == (1, 4, 0)
        assert new(export_study(folder.root, url)) == (0, 0, 0)
        export_study(folder.root, lite := f"sqlite:///{tmp_path}/x.db")
        one, other = studies(url), studies(lite)
        assert set(one) == set(other) == {f"s/{alias}" for alias in users}
        for name, study in one.items():
            assert [facts(trial) for trial in study.trials] == [facts(trial) for trial in other[name].trials]
            assert study.user_attrs == other[name].user_attrs
            assert study.metric_names == other[name].metric_names
    with pytest.raises(StorageError, match="cannot be reached") as caught:
        export_study(folder.root, url)
    assert "opensesame" not in str(caught.value) and "127.0.0.1" in str(caught.value)


@pytest.mark.nightly
def test_a_thousand_users_are_exported_within_minutes(tmp_path: Path) -> None:
    """30,000 trials of 34 parameters take half a minute where nothing else runs."""
    from milp_ray.config.objectives import objectives_on
    from milp_ray.memory.space import MemorySpace
    from milp_ray.search import Engine
    from tests.report.test_html_live import NAMES, SizedByRank

    folder = begun(tmp_path / "runs", users=1)
    space, found = MemorySpace(32, 32, (8, 16, 32, 64, 96)), aliases(1000)
    events = folder.layout.events(found[0])
    engine = Engine(space, objectives_on(SizedByRank(), NAMES), initial=4, surrogate="random", log=events)
    for proposal in engine.ask(30):
        engine.tell(proposal.id, {"loss": 2.5 - 0.01 * proposal.id, "rouge_l": 0.2 + 0.01 * proposal.id})
    for alias in found[1:]:
        shutil.copy(events, folder.layout.events(alias))
    began, worked = time.monotonic(), time.process_time()
    assert new(export_study(folder.root, store := f"sqlite:///{tmp_path}/x.db")) == (1000, 30_000, 0)
    assert time.process_time() - worked < 90 and time.monotonic() - began < 600
    worked = time.process_time()
    assert new(export_study(folder.root, store)) == (0, 0, 0)
    assert time.process_time() - worked < 45


@pytest.mark.nightly
def test_optuna_dashboard_opens_an_export(tmp_path: Path) -> None:
    if not (CLIENTS / "optuna_dashboard").is_dir():
        pytest.skip(f"no optuna-dashboard at {CLIENTS}: make install-trackers puts it there")
    if (browser := shutil.which("chromium")) is None:
        pytest.skip("no chromium: apt-get install chromium puts it there")
    folder, users = begun(tmp_path / "runs"), aliases(3)
    for alias in users:
        search(folder, alias, 8, fails=1)
    export_study(folder.root, store := f"sqlite:///{tmp_path}/x.db")
    with dashboard(store) as address:
        for place, words in (("dashboard", users), ("dashboard/studies/1", [users[0], "loss"])):
            page = subprocess.run(
                [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1600",
                 "--virtual-time-budget=20000", f"--screenshot={tmp_path / 'shot.png'}", "--dump-dom",
                 f"--user-data-dir={tmp_path / 'profile'}", f"{address}/{place}"],
                capture_output=True, text=True, timeout=240, check=True,
            ).stdout  # fmt: skip
            assert all(word in page for word in words), page[:2000]


@contextlib.contextmanager
def dashboard(store: str) -> Iterator[str]:
    """The address of an optuna-dashboard on a store."""
    port = free_port()
    code = "from optuna_dashboard._cli import main; main()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(CLIENTS)])}
    command = [sys.executable, "-c", code, store, "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < deadline, "the dashboard did not start"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/dashboard", timeout=5).close()
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
