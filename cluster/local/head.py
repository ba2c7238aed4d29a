"""A Ray head, and further nodes, on this machine alone: on loopback only, and with a token.

head.sh start FOLDER     start a head; prints the environment of a client, to be taken by eval
head.sh node FOLDER      start another node of the same cluster
head.sh env FOLDER       print that environment again
head.sh status FOLDER    0: the head answers, 1: it does not
head.sh stop FOLDER      end this head and its nodes, and no other Ray of this machine

FOLDER keeps the token, the process ids and the logs. Jobs are submitted to the head. For a cluster
of several machines there are the other folders beside this one. Processes are ended by their ids.
Exit codes: 0 done, 1 not running (status), 2 something to mend, which one error tells.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from processes import HOST, State, answers, end, launch

from milp_ray.errors import ClusterError, MilpRayError, StorageError
from milp_ray.storage import ownership_fault

_START_SECONDS = 120.0
# Paths of Ray's sockets must stay under 107 characters. A session's own part takes about 62.
_LONGEST_FOLDER = 42
_COMMANDS = {
    "start": "start a head; prints the environment of its clients",
    "node": "start another node of the same cluster",
    "env": "print the environment of its clients",
    "status": "say whether the head answers (exit code 0) or not (1)",
    "stop": "end this head and its nodes, by process id",
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = _parser().parse_args(words)
    given.folder = given.folder.absolute()
    commands = {"start": start, "node": node, "env": env, "status": status, "stop": stop}
    try:
        _check_own(given.folder)
        return commands[given.command](given)
    except MilpRayError as error:
        _say(f"error: {error}")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="head.sh", description="A Ray head on this machine alone.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("folder", type=Path, help="where the token, process ids and logs are kept")
        if name in ("start", "node"):
            command.add_argument("--num-cpus", type=int, help="CPUs to offer; default: all")
            command.add_argument("--num-gpus", type=int, help="GPUs to offer; default: all")
            command.add_argument("--object-store-memory", type=int, help="bytes; default: Ray's choice")
        if name == "start":
            command.add_argument("--port", type=int, default=6379, help="of the head (6379)")
            command.add_argument("--dashboard-port", type=int, default=8265, help="dashboard, jobs (8265)")
            command.add_argument("--metrics-port", type=int, default=8080, help="for Prometheus (8080)")
            command.add_argument("--token-file", type=Path, help="a token to use; default: a new one")
    return parser


def start(given: argparse.Namespace) -> int:
    """Start a head and wait until its dashboard answers."""
    folder: Path = given.folder
    old = State.read(folder)
    if old is not None and old.head.is_alive():
        raise ClusterError(
            f"a head is running already (process {old.head.pid})",
            where=str(folder),
            remedy="use it (head.sh env FOLDER), or end it first (head.sh stop FOLDER)",
        )
    for flag in ("port", "dashboard_port", "metrics_port"):
        _check_free(getattr(given, flag), f"--{flag.replace('_', '-')}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_own(folder)  # somebody may have made it meanwhile
    token = _token(folder, given.token_file)
    sessions = _sessions(folder)
    log = folder / "head.log"
    state = State(
        head=launch(_head_command(given, sessions), log, _environment(token)),
        nodes=(),
        address=f"{HOST}:{given.port}",
        dashboard=f"http://{HOST}:{given.dashboard_port}",
        metrics=f"{HOST}:{given.metrics_port}",
        token=str(token),
        sessions=str(sessions),
    )
    state.write(folder)
    try:
        _wait_for_head(state, log)
    except BaseException:
        end([state.head])
        State.remove(folder)
        raise
    _say(f"head {state.address}; dashboard and jobs {state.dashboard}; metrics {state.metrics}")
    return env(given)


def _head_command(given: argparse.Namespace, sessions: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        f"--port={given.port}",
        *(f"--dashboard-host={HOST}", f"--dashboard-port={given.dashboard_port}"),
        *(f"--metrics-export-port={given.metrics_port}", f"--temp-dir={sessions}"),
        # Free ports, so that several heads can run side by side. The server of ray:// cannot be
        # left out, though nobody here uses it.
        *("--dashboard-agent-listen-port=0", f"--ray-client-server-port={_free_port()}"),
        *("--min-worker-port=0", "--max-worker-port=0"),
        *_resources(given),
    ]


def node(given: argparse.Namespace) -> int:
    """Start another node of a head's cluster and wait until it has joined."""
    folder: Path = given.folder
    state = _running(folder)
    log = folder / f"node-{len(state.nodes) + 1}.log"
    log.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("node.py")), state.address, *_resources(given)]
    process = launch(command, log, _environment(Path(state.token)))
    state.with_node(process).write(folder)
    deadline = time.monotonic() + _START_SECONDS
    while "node started" not in log.read_text(encoding="utf-8", errors="replace"):
        if not process.is_alive() or time.monotonic() > deadline:
            end([process])
            raise ClusterError("the node did not start", where=str(log), remedy="the log says why")
        time.sleep(0.2)
    _say(f"a node of {state.address} (process {process.pid})")
    return 0


def env(given: argparse.Namespace) -> int:
    """Print what a shell evaluates to become a client: of `milp-ray submit` and `ray job`."""
    state = _running(given.folder)
    values = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": state.token,
        "RAY_ADDRESS": state.dashboard,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    for name, value in values.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    sys.stdout.write("unset RAY_AUTH_TOKEN\n")  # it would win over the path
    return 0


def status(given: argparse.Namespace) -> int:
    """Say whether the head answers."""
    state = State.read(given.folder)
    if state is None or not state.head.is_alive():
        _say("not running")
        return 1
    alive = answers(state)
    nodes = sum(process.is_alive() for process in state.nodes)
    _say(
        f"head {state.address} (process {state.head.pid}) {'answers' if alive else 'does not answer'}; "
        f"dashboard {state.dashboard}; metrics {state.metrics}; further nodes: {nodes}"
    )
    return 0 if alive else 1


def stop(given: argparse.Namespace) -> int:
    """End the head, its nodes and all that they started; a job's run can be resumed."""
    state = State.read(given.folder)
    if state is None:
        _say("not running")
        return 0
    ended = end([*state.nodes, state.head])
    State.remove(given.folder)
    _say(f"ended {ended} processes")
    return 0


def _check_own(folder: Path) -> None:
    """Check that nobody else has made the folder, or may write in it.

    The folder says which processes are ended, and what a shell runs.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if fault := ownership_fault(folder, "the head's folder"):
        raise StorageError(
            fault,
            where=str(folder),
            expected="a folder of yours that nobody else may write in, or none yet",
            remedy="name another folder, in your home for instance (~/.milp-ray/head)",
        )


def _running(folder: Path) -> State:
    state = State.read(folder)
    if state is None or not state.head.is_alive():
        raise ClusterError("no head is running", where=str(folder), remedy="start one: head.sh start FOLDER")
    return state


def _wait_for_head(state: State, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not answers(state):
        if not state.head.is_alive():
            raise ClusterError("the head ended while it started", where=str(log), remedy="the log says why")
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the head did not answer within {_START_SECONDS:.0f} s",
                where=str(log),
                expected=f"an answer at {state.dashboard}",
                remedy=f"look into {log} and {state.sessions}/session_latest/logs",
            )
        time.sleep(0.2)


def _check_free(port: int, flag: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Ray's servers do
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ClusterError(
                f"port {port} cannot be used: {error}", where=flag, remedy=f"name a free one with {flag}"
            ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _token(folder: Path, given: Path | None) -> Path:
    """The token's file: the given one, or the folder's, which is made if it is not there."""
    path = (given or folder / "token").absolute()
    if given is None and not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32), encoding="ascii")
    try:
        found = path.stat()
        mode = stat.S_IMODE(found.st_mode)
        content = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise StorageError(
            f"the token cannot be read ({type(error).__name__})",
            where=str(path),
            expected="a text file with one token",
            remedy="make one: (umask 077; openssl rand -hex 32 > FILE)",
        ) from None
    if found.st_uid not in (os.getuid(), 0):
        raise StorageError(
            "the token's file is another user's, who knows the token",
            where=str(path),
            expected="a token in a file of yours",
            remedy="make one: (umask 077; openssl rand -hex 32 > FILE)",
        )
    if not content or mode & 0o077:
        raise StorageError(
            f"the token's file {'is empty' if not content else f'can be read by others (mode {mode:04o})'}",
            where=str(path),
            expected="a token, readable by its owner alone",
            remedy=f"chmod 600 {path}" if content else "make one: (umask 077; openssl rand -hex 32 > FILE)",
        )
    return path


def _sessions(folder: Path) -> Path:
    """Ray's temporary folder, in one that only its owner can enter: Ray opens its own to all.

    Where FOLDER's path is too long for sockets below it, ``ray`` is a link to a short path under
    /tmp.
    """
    private = folder / "ray"
    # A link leads to /tmp. The folder there may be gone, and another user's may have its name now.
    if not private.is_dir() or ownership_fault(private.resolve(), "it"):
        private.unlink(missing_ok=True)
        if len(str(private / "r")) <= _LONGEST_FOLDER:
            private.mkdir(mode=0o700)
        else:
            private.symlink_to(tempfile.mkdtemp(prefix="mrh-", dir="/tmp"))
    return private.resolve() / "r"


def _environment(token: Path) -> dict[str, str]:
    """The environment of the head and its nodes."""
    cleared = {
        name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_TOKEN", "RAY_ADDRESS")
    }
    here = str(Path(sys.executable).parent)
    return cleared | {
        # A job's command says `python`. That is this one, whatever the head's shell would find.
        "PATH": os.pathsep.join([here, os.environ.get("PATH", os.defpath)]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Despite its name this is Ray's only switch that keeps every server on loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # Train runs in the dashboard's API
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nobody else takes the work over: end at once
    }


def _resources(given: argparse.Namespace) -> list[str]:
    names = ("num_cpus", "num_gpus", "object_store_memory")
    return [
        f"--{name.replace('_', '-')}={getattr(given, name)}"
        for name in names
        if getattr(given, name) is not None
    ]


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
