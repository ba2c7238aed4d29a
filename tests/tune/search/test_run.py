"""Searches on a real Ray whose workers hang or cannot be set up: no trial is lost or charged."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from milp_ray.config.models import RaySettings, Study
from milp_ray.data.records import UserSplit
from milp_ray.errors import ClusterError
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Engine, Objective
from milp_ray.trial.records import TrialCost, TrialRequest
from milp_ray.tune.search.simulated import SimulatedSpec
from milp_ray.tune.workers.failures import FailurePolicy
from tests.processes import titled
from tests.tune.search.test_simulated import spec_of as simulated_spec

pytestmark = pytest.mark.slow

TRIALS = 3
OBJECTIVES = (Objective("loss", "min"), Objective("rouge_l", "max"))


class Hooks:
    """Told of starts and ends; ``at_end`` is called in Tune's loop when a trial was told."""

    def __init__(self, at_end: Callable[[], object] = lambda: None) -> None:
        self.lost: list[bool] = []
        self.reasons: list[str] = []
        self.at_end = at_end

    def on_trial_started(self, request: TrialRequest) -> None: ...

    def on_trial_requeued(self, request: TrialRequest, is_charged: bool) -> None:
        self.lost.append(is_charged)

    def on_trial_completed(self, request: TrialRequest, values: object, cost: TrialCost | None) -> None:
        self.reasons.append("")
        self.at_end()

    def on_trial_failed(self, request: TrialRequest, reason: str, cost: TrialCost | None) -> None:
        self.reasons.append(reason)
        self.at_end()


class Search:
    """A search of one user with one worker. ``said``: what people are told; it calls ``at_say``."""

    def __init__(self, spec: Any, folder: Path, at_say: Callable[[], object] = lambda: None) -> None:
        self.spec, self.folder, self.at_say = spec, folder, at_say
        self.said: list[str] = []
        (folder / "events").mkdir(exist_ok=True)

    def run(self, hooks: Hooks) -> Engine:
        """To its end; the user's engine."""
        from milp_ray.tune.search.run import run_search

        settings = {"initial": TRIALS, "surrogate": "random", "trials": TRIALS}
        space = MemorySpace(num_layers=4, max_loras=4, ranks=(4, 8))
        engine = Engine(space, OBJECTIVES, log=self.folder / "events" / "a.jsonl", **settings)
        run_search(self.spec, {"a": engine}, self.folder / "tune", lambda: False, (hooks,), notify=self._say)
        return engine

    def _say(self, text: str) -> None:
        self.said.append(text)
        self.at_say()


def study_of(model: Path, **changes: Any) -> Study:
    raw: dict[str, Any] = {
        "name": "small",
        "model": {"path": str(model)},
        "data": {"path": "none"},
        "prompts": {"max_length": 64},
        "memory": {"ranks": (4, 8)},
        "trial": {"epochs": 1, "max_new_tokens": 4, "slice_seconds": 0.3},
        "search": {"trials": TRIALS, "initial": TRIALS, "surrogate": "random"},
        "ray": {"max_concurrent": 1, "cpus_per_worker": 0.5, "gpus_per_worker": 0, "max_failures": 1},
    }
    return Study.model_validate(raw | {name: raw[name] | values for name, values in changes.items()})


Make = Callable[..., Search]


@pytest.fixture
def make(cluster: None, shallow_model: Path, tiny_user: UserSplit, tmp_path: Path) -> Make:
    """Searches of a tiny model in one run folder, which workers do not see without its run.json."""
    import ray

    from milp_ray.trial.unit import SearchUnit
    from milp_ray.tune.workers.trial_spec import TrialSpec

    def search(at_say: Callable[[], object] = lambda: None, **changes: Any) -> Search:
        spec = TrialSpec(
            study_of(shallow_model, **changes), {"a": ray.put(SearchUnit.of_user(tiny_user))}, tmp_path
        )
        return Search(spec, tmp_path, at_say)

    return search


def soon(title: str) -> psutil.Process:
    """Wait for a process of this session's Ray whose title says this."""
    while not (found := titled(title)):
        time.sleep(0.05)
    return found[0]


def told(engine: Engine) -> bool:
    """Whether all trials were told once, and well."""
    numbers = sorted(seen.id for seen in engine.observations)
    return numbers == list(range(TRIALS)) and not engine.failures and engine.reference is not None


def test_a_stopped_worker_of_a_trial_is_ended_and_costs_a_retry(make: Make, tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    search = make(ray={"group_timeout": 6.0}, trial={"epochs": 30})
    stopped: list[psutil.Process] = []

    def stop() -> None:
        found = soon("ray::MemoryTrial.train")
        time.sleep(1.0)
        found.send_signal(signal.SIGSTOP)
        stopped.append(found)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    hooks = Hooks()
    assert told(search.run(hooks))
    assert hooks.lost == [True] and ["no sign of life for 6 s" in text for text in search.said] == [True]
    assert not any(process.is_running() and process.status() != "zombie" for process in stopped)


@pytest.mark.nightly
def test_a_trial_whose_group_is_lost_more_often_than_may_be_has_failed(make: Make, tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    search = make(ray={"workers_per_trial": 2, "parallelism": "ddp", "max_failures": 0}, trial={"epochs": 40})
    killed: list[psutil.Process] = []

    def kill() -> None:
        killed.append(soon("ray::Rank.slice"))
        killed[0].kill()

    def after_the_first() -> None:  # which measures without a memory, and stands in no log
        if not threads:
            threads.append(threading.Thread(target=kill, daemon=True))
            threads[0].start()

    threads: list[threading.Thread] = []
    hooks = Hooks(at_end=after_the_first)
    engine = search.run(hooks)
    (failure,) = engine.failures
    assert (
        killed
        and failure.reason.startswith("a worker died: its process ended (SYSTEM_ERROR)")
        and hooks.reasons.count("") == TRIALS
    )
    assert len(engine.observations) == TRIALS - 1 and not hooks.lost


def test_a_worker_that_is_stopped_between_two_trials_is_noticed_by_the_next(
    cluster: None, tmp_path: Path
) -> None:
    simple = simulated_spec(0.2)
    ray_settings = RaySettings(max_concurrent=1, cpus_per_worker=0.5, group_timeout=4.0)
    search_settings = simple.study.search.model_copy(update={"trials": TRIALS, "initial": TRIALS})
    study = simple.study.model_copy(update={"ray": ray_settings, "search": search_settings})
    search = Search(SimulatedSpec(study, simple.architecture, {"a": 0}), tmp_path)
    stopped: list[int] = []

    def stop() -> None:
        if not stopped:
            stopped.append(titled("ray::SimulatedTrial")[0].pid)
            os.kill(stopped[0], signal.SIGSTOP)

    hooks = Hooks(at_end=stop)
    assert told(search.run(hooks)) and stopped
    assert hooks.lost == [True] and len(search.said) == 1


def test_a_worker_that_cannot_be_set_up_is_replaced_and_its_trial_is_not_charged(
    make: Make, tmp_path: Path
) -> None:
    """The run folder's mount comes late; meanwhile such a worker ends, while Tune's loop waits."""

    def mount() -> None:
        deadline = time.monotonic() + 30
        while titled("ray::MemoryTrial"):
            assert time.monotonic() < deadline, "it is there still"
            time.sleep(0.1)
        (tmp_path / "run.json").touch()

    search = make(at_say=mount, ray={"max_failures": 0})
    hooks = Hooks()
    assert told(search.run(hooks)) and hooks.lost == [False]
    assert len(search.said) == 1 and "does not see the run folder" in search.said[0]
    assert search.said[0].startswith("node ")


@pytest.mark.nightly
def test_where_none_can_be_set_up_the_run_ends_with_the_reason_and_a_resume_goes_on(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    five = FailurePolicy.__init__.__kwdefaults__
    monkeypatch.setitem(five, "limit", 2)  # five take their time
    hooks = Hooks()
    search = make()
    with pytest.raises(ClusterError, match="does not see the run folder") as ended:
        search.run(hooks)
    assert ended.value.exit_code == 1 and len(search.said) == 1
    assert hooks.lost == [False] * 2 and not hooks.reasons
    (tmp_path / "run.json").touch()
    assert told(search.run(hooks))


def test_what_tune_itself_says_is_told_and_what_others_say_is_not() -> None:
    from ray import tune

    from milp_ray.tune.search.run import _rays_words

    with pytest.raises(ValueError) as tunes:
        tune.with_parameters(5)
    assert "only works with function trainables" in _rays_words(tunes.value)
    with pytest.raises(ValueError) as others:
        raise ValueError("a user's text")
    assert _rays_words(others.value) == ""


def test_what_train_itself_says_is_told_and_what_a_worker_says_is_not() -> None:
    from ray.train.v2.api.exceptions import ControllerError

    from milp_ray.tune.final.run import _given_up, _why

    rays = ControllerError(RuntimeError("Failed to set up runtime environment.\nno such file x"))
    assert "(RuntimeError: Failed to set up runtime environment. no such file x)" in str(
        _given_up(2, _why(rays))
    )
    assert "(ValueError)" in str(_given_up(2, _why(ValueError("a user's text"))))
