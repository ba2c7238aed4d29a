"""A follower sends what a tracker has not got, never keeps the run waiting, and tells once."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from milp_ray.config.loading import load_study
from milp_ray.config.models import Study
from milp_ray.errors import StudyError
from milp_ray.memory.placement import Placement
from milp_ray.study.preflight import preflight
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.tracked import begun_at, make_tracker, tracked_search, tracked_study
from milp_ray.tracking import follower as module
from milp_ray.tracking.follower import Follower, SentFile
from milp_ray.tracking.interface import (
    OpenRuns,
    Step,
    TrackedSearch,
    TrackedStudy,
    tracking_faults,
    without_credentials,
)
from milp_ray.trial.records import TrialRequest
from tests.report.runs import aliases, study_of
from tests.report.test_html_live import begun, search
from tests.tracking.conftest import search_now


class Kept:
    """A tracker that keeps what it is told; ``away``: it raises."""

    def __init__(self) -> None:
        self.away = False
        self.begins = 0
        self.steps: dict[str, list[Step]] = {}
        self.searches: dict[str, TrackedSearch] = {}
        self.sends = 0
        self.total: dict[str, float] = {}
        self.closed: bool | None = None
        self.gate = threading.Event()
        self.gate.set()

    def begin(self, study: TrackedStudy) -> None:
        self._reach()
        self.begins += 1

    def send(self, search: TrackedSearch, first: int) -> None:
        self._reach()
        self.sends += 1
        kept = self.steps.setdefault(search.alias, [])
        assert first == len(kept), "a step was sent twice, or left out"
        kept += search.steps[first:]
        self.searches[search.alias] = search

    def totals(self, step: int, metrics: Mapping[str, float]) -> None:
        self._reach()
        self.total = {"step": step, **metrics}

    def close(self, *, is_done: bool) -> None:
        self.closed = is_done

    def _reach(self) -> None:
        self.gate.wait(30)
        if self.away:
            raise ConnectionError("no route to http://me:opensesame@tracker.example")


def following(folder: RunFolder, tracker: Kept, said: list[str], patience: float = 20.0) -> Follower:
    begun_then = begun_at(folder)
    return Follower(
        "mlflow", tracker, tracked_study(folder), aliases(3),
        lambda alias: tracked_search(folder, alias, begun_then), said.append, patience,
    )  # fmt: skip


def ended(alias: str) -> TrialRequest:
    return TrialRequest(alias, 0, Placement(()))


def wait_for(condition: object, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_ends_is_sent_while_the_run_goes_on_and_nothing_twice(tmp_path: Path) -> None:
    folder, users = begun(tmp_path / "runs"), aliases(3)
    tracker, said = Kept(), list[str]()
    with following(folder, tracker, said) as follower:
        search(folder, users[0], 2, fails=1)
        follower.on_trial_completed(ended(users[0]), {}, None)
        wait_for(lambda: len(tracker.steps.get(users[0], [])) == 2)
        search(folder, users[0], 3)
        search(folder, users[1], 1)
        follower.on_trial_completed(ended(users[0]), {}, None)
        follower.on_trial_failed(ended(users[1]), "out of memory", None)
        follower.close(is_done=True)
    assert tracker.begins == 1 and tracker.closed is True and said == []
    assert [len(tracker.steps[alias]) for alias in users[:2]] == [5, 1]
    assert tracker.total == {"step": 7, "trials_done": 6, "trials_failed": 1, "searches_over": 0}
    found = tracker.searches[users[0]]
    assert found.summary["trials_failed"] == 1 and found.summary["no_memory_loss"] == 2.6
    first = tracker.steps[users[0]][0].metrics
    assert first["trial"] == 1 and first["loss"] == pytest.approx(2.49) and first["layers"] >= 1
    bests = [step.metrics["best_loss"] for step in tracker.steps[users[0]]]
    assert bests == sorted(bests, reverse=True)


def test_a_later_session_sends_what_is_missing_alone(tmp_path: Path) -> None:
    folder, users = begun(tmp_path / "runs"), aliases(3)
    search(folder, users[0], 2)
    tracker = Kept()
    with following(folder, tracker, []) as follower:
        follower.close(is_done=False)
    assert tracker.sends == 1 and tracker.closed is False
    search(folder, users[0], 2)  # a driver that was killed before it sent these
    sent = folder.layout.tracking / "mlflow.sent"
    with sent.open("a") as file:
        file.write('["u-')  # and while it wrote this line
    with following(folder, tracker, []) as follower:
        follower.close(is_done=True)
    assert [step.metrics["trial"] for step in tracker.steps[users[0]]] == [0, 1, 2, 3]
    with following(folder, tracker, []) as follower:
        follower.close(is_done=True)
    assert tracker.sends == 2


def test_a_tracker_that_is_away_is_told_once_and_gets_everything_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.05)
    folder, users = begun(tmp_path / "runs"), aliases(3)
    tracker, said = Kept(), list[str]()
    tracker.away = True
    with following(folder, tracker, said) as follower:
        for alias in users:
            search(folder, alias, 2)
            follower.on_trial_completed(ended(alias), {}, None)
        wait_for(lambda: said)
        time.sleep(0.3)
        assert len(said) == 1, "told once"
        assert "mlflow" in said[0] and "ConnectionError" in said[0] and "study goes on" in said[0]
        assert "opensesame" not in said[0] and "tracker.example" in said[0]
        tracker.away = False
        follower.close(is_done=True)
    assert len(said) == 2 and "again" in said[1]
    assert [len(tracker.steps[alias]) for alias in users] == [2, 2, 2] and tracker.closed


def test_a_tracker_that_stays_away_keeps_nobody_waiting(tmp_path: Path) -> None:
    folder, users = begun(tmp_path / "runs"), aliases(3)
    search(folder, users[0], 2)
    tracker, said = Kept(), list[str]()
    tracker.away = True
    began = time.monotonic()
    with following(folder, tracker, said) as follower:
        wait_for(lambda: said)
        follower.close(is_done=True)
    assert time.monotonic() - began < 10 and tracker.closed is None
    assert len(said) == 2 and "resume" in said[1]


def test_a_call_that_hangs_ends_with_the_patience(tmp_path: Path) -> None:
    folder, users = begun(tmp_path / "runs"), aliases(3)
    search(folder, users[0], 2)
    tracker, said = Kept(), list[str]()
    tracker.gate.clear()
    began = time.monotonic()
    with following(folder, tracker, said, patience=0.5) as follower:
        follower.on_trial_completed(ended(users[0]), {}, None)
        assert time.monotonic() - began < 0.4, "a listener never waits"
        follower.close(is_done=True)
    assert time.monotonic() - began < 5 and "not all" in said[0]
    tracker.gate.set()


def test_a_damaged_log_is_told_and_the_others_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.05)
    folder, users = begun(tmp_path / "runs"), aliases(3)
    for alias in users[:2]:
        search(folder, alias, 2)
    log = folder.layout.events(users[0])
    log.write_text(log.read_text().replace('"told"', '"TOLD"', 1))
    tracker, said = Kept(), list[str]()
    with following(folder, tracker, said) as follower:
        wait_for(lambda: users[1] in tracker.steps)
        follower.close(is_done=True)
    assert "unknown kind" in said[0] and set(tracker.steps) == {users[1]}


def test_a_search_is_sent_again_when_its_summary_alone_has_changed(tmp_path: Path) -> None:
    folder, alias = begun(tmp_path), aliases(3)[0]
    search(folder, alias, 2)
    kept = SentFile(None)
    kept.keep(search_now(folder, alias))
    assert not kept.is_new(search_now(folder, alias)) and kept.steps(alias) == 2
    folder.layout.scores(alias).parent.mkdir()
    folder.layout.scores(alias).write_text('{"samples": 9, "models": {"own": {"loss": 2.25}}}')
    found = search_now(folder, alias)
    assert kept.is_new(found) and found.summary["test_own_loss"] == 2.25


def test_open_runs_are_few_and_the_longest_idle_is_closed() -> None:
    closed: list[str] = []
    runs: OpenRuns[str] = OpenRuns(2, closed.append)
    for name in ("a", "b", "a", "c"):
        assert runs.get(name, lambda name=name: name) == name  # type: ignore[misc]
    assert closed == ["b"]
    runs.end("a")
    runs.end_all()
    assert closed == ["b", "a", "c"]


def test_settings_that_trackers_are_told_hold_no_path_and_no_text(tmp_path: Path) -> None:
    study = study_of(tmp_path / "secret-place", model={"path": str(tmp_path / "home" / "my-model")})
    folder = RunFolder.create(study, "f" * 64)
    found = tracked_study(folder)
    text = repr(found.settings)
    assert found.settings["model"] == "my-model" and found.settings["search.trials"] == 10
    assert str(tmp_path) not in text and "User:" not in text and "secret" not in text
    assert folder.key.hex() not in repr(found)


def test_two_runs_of_one_name_have_different_digests(tmp_path: Path) -> None:
    one, other = (RunFolder.create(study_of(tmp_path / name), "f" * 64) for name in "ab")
    assert tracked_study(one).digest != tracked_study(other).digest
    assert tracked_study(one).digest == tracked_study(RunFolder.open(one.root)).digest


def test_a_client_that_is_missing_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milp_ray.tracking.interface.find_spec", lambda name: None)
    study = study_of(tmp_path, tracking=["mlflow", "wandb"], simulation={})
    faults = tracking_faults(study)
    assert [fault.remedy.partition(",")[0] for fault in faults] == [
        'pip install "milp_ray[mlflow]"',
        'pip install "milp_ray[wandb]"',
    ]
    (error,) = preflight(study, None, None).faults  # type: ignore[arg-type]
    assert isinstance(error, StudyError) and len(error.problems) == 2


def test_tensorboard_at_a_url_is_refused(tmp_path: Path) -> None:
    study = study_of(tmp_path, tracking=["tensorboard"], storage={"path": "s3://bucket/runs"})
    (fault,) = tracking_faults(study)
    assert "at a URL" in fault.fact


def test_trackers_may_change_with_a_resume_and_unknown_ones_are_told(tmp_path: Path) -> None:
    folder = RunFolder.create(study_of(tmp_path), "f" * 64)
    assert folder.study.tracking == ()
    changed = folder.study.model_copy(update={"tracking": ("wandb",)})
    assert folder.differences(changed) == []
    found = RunFolder.of(changed)
    assert found is not None and found.study.tracking == ("wandb",)
    loaded = load_study(folder.layout.study_file, ["tracking=[mlflow, tensorboard]"])
    assert loaded.tracking == ("mlflow", "tensorboard")
    for wrong in ("tracking=[mlfow]", "tracking=[wandb, wandb]"):
        with pytest.raises(StudyError, match="tracking"):
            load_study(folder.layout.study_file, [wrong])
    for name in Study.model_fields["tracking"].annotation.__args__[0].__args__:  # type: ignore[union-attr]
        assert make_tracker(name)


def test_credentials_of_an_address_are_never_told() -> None:
    assert without_credentials("GET https://me:secret@host/x failed") == "GET https://…@host/x failed"
