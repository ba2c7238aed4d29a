"""Each tracker's own client, offline, read back by that tracker's own means."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from milp_ray.study.run_folder import RunFolder
from milp_ray.study.tracked import begun_at, make_tracker, tracked_search, tracked_study
from milp_ray.tracking.follower import Follower
from tests.report.runs import aliases
from tests.report.test_html_live import begun, search
from tests.tracking.conftest import search_now
from tests.tracking.test_follower import wait_for

pytestmark = pytest.mark.nightly
CANARY = "person"  # raw ids of these runs are "person 0", …


def session(folder: RunFolder, name: str, *, done: bool = True) -> list[str]:
    """What people are told in one session of a run in which nothing new happens."""
    said: list[str] = []
    then = begun_at(folder)
    follower = Follower(
        name, make_tracker(name), tracked_study(folder), aliases(3),
        lambda alias: tracked_search(folder, alias, then), said.append, 900.0,
    )  # fmt: skip
    with follower:
        follower.close(is_done=done)
    return said


def went_on(folder: RunFolder, name: str) -> None:
    """Two sessions, and between them more trials and a search of another user."""
    one, other, _ = aliases(3)
    search(folder, one, 2, fails=1)
    assert session(folder, name, done=False) == []
    search(folder, one, 2)
    search(folder, other, 10)
    assert session(folder, name) == []
    assert session(folder, name) == []


def test_mlflow_has_a_run_for_the_study_and_nested_ones_for_its_users(tmp_path: Path, clients: Path) -> None:
    folder, (one, other, _) = begun(tmp_path / "runs"), aliases(3)
    went_on(folder, "mlflow")
    from mlflow.tracking import MlflowClient

    database = folder.layout.tracking / "mlflow" / "mlflow.db"
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("s")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"s", one, other}
    parent = runs["s"]
    assert parent.data.params["search.trials"] == "10" and parent.info.status == "FINISHED"
    assert parent.data.metrics["trials_done"] == 14 and parent.data.metrics["trials_failed"] == 1
    assert {runs[alias].data.tags["mlflow.parentRunId"] for alias in (one, other)} == {parent.info.run_id}
    history = client.get_metric_history(runs[one].info.run_id, "loss")
    steps = [step.metrics["loss"] for step in search_now(folder, one).steps]
    assert [(metric.step, metric.value) for metric in history] == list(enumerate(steps, start=1))
    assert runs[other].info.status == "FINISHED" and runs[other].data.metrics["front_size"] == 1
    assert ":" in runs[one].data.tags["chosen_placement"]
    assert CANARY.encode() not in database.read_bytes()
    assert not (tmp_path / "mlruns").exists() and not (tmp_path / "mlflow.db").exists()


def test_mlflow_stores_once_what_is_sent_twice(tmp_path: Path, clients: Path) -> None:
    """A driver that is killed between sending and taking note sends again."""
    folder, (one, *_) = begun(tmp_path / "runs"), aliases(3)
    search(folder, one, 3)
    session(folder, "mlflow")
    (folder.layout.tracking / "mlflow.sent").unlink()
    session(folder, "mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.layout.tracking / 'mlflow' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    (run,) = (run for run in runs if run.info.run_name == one)
    assert len(runs) == 2
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "best_loss")] == [1, 2, 3]


def test_mlflow_does_not_chatter_on_the_terminal(tmp_path: Path, clients: Path) -> None:
    """In a new process: it sets its loggers' levels when it is imported."""
    folder = begun(tmp_path / "runs")
    search(folder, aliases(3)[0], 2)
    code = f"""
from milp_ray.study.run_folder import RunFolder
from tests.tracking.test_clients import session
assert session(RunFolder.open({str(folder.root)!r}), "mlflow") == []
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_wandb_has_a_group_of_runs_that_a_later_session_goes_on_with(tmp_path: Path, clients: Path) -> None:
    folder, (one, other, _) = begun(tmp_path / "runs"), aliases(3)
    went_on(folder, "wandb")
    digest = tracked_study(folder).digest
    found = offline_runs(folder.layout.tracking / "wandb")
    assert set(found) == {digest, f"{digest}-{one}", f"{digest}-{other}"}
    steps = [step.metrics["loss"] for step in search_now(folder, one).steps]
    history = found[f"{digest}-{one}"]["history"]
    assert [(row["_step"], row["loss"]) for row in history] == list(enumerate(steps, start=1))
    run = found[f"{digest}-{one}"]["run"]
    assert run["run_group"].startswith("s-") and run["job_type"] == "user" and run["display_name"] == one
    assert found[f"{digest}-{one}"]["summary"]["front_size"] == 1
    assert found[digest]["run"]["job_type"] == "study" and found[digest]["config"]["search.trials"] == 10
    for path in (folder.layout.tracking / "wandb").rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
    names = {path.name for path in (folder.layout.tracking / "wandb").rglob("*") if path.is_file()}
    assert not {"requirements.txt", "wandb-metadata.json", "output.log"} & names, "nobody asked for these"


def offline_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Offline runs by id, in the order of their files, by W&B's own messages."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*.wandb")):
        one: dict[str, Any] = {}
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                one = found.setdefault(record.run.run_id, {"history": [], "summary": {}, "config": {}})
                keys = ("run_group", "job_type", "display_name")
                one["run"] = {key: getattr(record.run, key) for key in keys}
                one["config"] |= plain(record.run.config.update)
            elif kind == "history":
                one["history"].append({"_step": record.history.step.num} | plain(record.history.item))
            elif kind == "summary":
                one["summary"] |= plain(record.summary.update)
    return found


def plain(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def records(data: bytes) -> Iterator[bytes]:
    """The records of an offline file: LevelDB's log format, after seven bytes of W&B's own."""
    assert data.startswith(b":W&B")
    place, part = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield part
            part = b""


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path, clients: Path) -> None:
    folder, (one, other, _) = begun(tmp_path / "runs"), aliases(3)
    went_on(folder, "tensorboard")
    code = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator(sys.argv[1])
found.Reload()
print(json.dumps({tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}))
"""
    root = folder.layout.tracking / "tensorboard"
    assert {path.name for path in root.iterdir()} == {"study", one, other}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    read = {
        name: json.loads(
            subprocess.run(
                [sys.executable, "-c", code, str(root / name)],
                capture_output=True, text=True, check=True, env=environment,
            ).stdout
        )
        for name in ("study", one)
    }  # fmt: skip
    steps = [step.metrics["loss"] for step in search_now(folder, one).steps]
    assert [number for number, _ in read[one]["loss"]] == [1, 2, 3, 4]
    assert [value for _, value in read[one]["loss"]] == pytest.approx(steps)
    assert read["study"]["trials_done"][-1] == [15, 14.0]


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def broken_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "broken"])
def test_an_mlflow_server_that_is_away_or_ill_is_told_once_within_a_minute(
    tmp_path: Path, clients: Path, address: str, broken_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = broken_server if address == "broken" else address
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:opensesame@{place}")
    folder, said = begun(tmp_path / "runs"), list[str]()
    search(folder, aliases(3)[0], 2)
    then = begun_at(folder)
    with Follower(
        "mlflow", make_tracker("mlflow"), tracked_study(folder), aliases(3),
        lambda alias: tracked_search(folder, alias, then), said.append,
    ) as follower:  # fmt: skip
        wait_for(lambda: said, 60)
        follower.close(is_done=False)
    assert "mlflow" in said[0] and "study goes on" in said[0] and "opensesame" not in said[0], said
