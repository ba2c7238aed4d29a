"""The final job on a real Ray Train: exact, on one worker or several, whatever happens to them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from milp_ray.config.models import RaySettings, Study
from milp_ray.data.records import UserSplit
from milp_ray.errors import ClusterError, ModelError, StorageError
from milp_ray.memory.placement import Placement
from milp_ray.tune.cluster.session import ray_session
from tests.processes import listening_addresses, titled, wait_for

pytestmark = pytest.mark.slow

PLACED = {
    "u1": Placement.from_key("0:4,1:8"),
    "u2": Placement.from_key("1:4"),
    "u3": Placement.from_key("0:8"),
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_session(RaySettings(dashboard=True)):
        yield


def train_runs() -> list[dict[str, Any]]:
    """What Train runs in the dashboard's API shows."""
    from ray._private.worker import get_dashboard_url

    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="ascii").strip()
    request = urllib.request.Request(
        f"http://{get_dashboard_url()}/api/train/v2/runs/v1", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["train_runs"]
    except urllib.error.HTTPError:  # Ray Train has not told anything yet
        return []
    return found


def study_of(folder: Path, **changes: Any) -> Study:
    raw: dict[str, Any] = {
        "name": "fin",
        "model": {"path": str(folder), "device": "cpu"},
        "data": {"path": "none"},
        "prompts": {"max_length": 64},
        "memory": {"ranks": (4, 8), "dropout": 0.1},
        "optimizer": {"learning_rate": 1e-2, "batch_size": 3},
        "trial": {"max_new_tokens": 4, "eval_batch_size": 2},
        "final": {"epochs": 2, "instruct_epochs": 1},
        "ray": {"cpus_per_worker": 0.5, "group_timeout": 30, "gpus_per_worker": 0, "dashboard": True},
    }
    for section, values in changes.items():
        raw[section] = {**raw[section], **values}
    return Study.model_validate(raw)


class Final:
    """A final job of some users, in a folder."""

    def __init__(self, study: Study, user: UserSplit, root: Path, users: int = 3) -> None:
        import ray

        from milp_ray.tune.final.coordinator import FinalSpec

        placements = dict(list(PLACED.items())[:users])
        root.mkdir(exist_ok=True)
        (root / "run.json").touch()
        self.spec = FinalSpec(
            study,
            {alias: ray.put(dataclasses.replace(user, alias=alias)) for alias in placements},
            placements,
            root,
        )
        self.events: list[tuple[str, str, str]] = []
        self.notes: list[str] = []
        self.said: list[str] = []
        self.stop = False

    def run(self) -> None:
        from milp_ray.tune.final.run import run_final

        def listener(event: Any) -> None:
            self.events.append((event.step, event.alias, event.reason))
            self.notes += event.notes

        run_final(self.spec, lambda: self.stop, listener, self.told)

    def told(self, text: str) -> None:
        """What people are told."""
        self.said.append(text)

    def during(self, act: Callable[[], None]) -> None:
        """Run it while ``act`` happens in another thread."""
        failures: list[BaseException] = []

        def guarded() -> None:
            try:
                act()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        self.run()
        thread.join(30)
        assert not failures, failures

    def state(self, alias: str = "u1") -> dict[str, Any] | None:
        """The newest kept state of a user's training."""
        folders = sorted(path for path in self.spec.layout.checkpoints(alias).glob("[0-9]*") if path.is_dir())
        if not folders:
            return None
        try:
            found: dict[str, Any] = json.loads((folders[-1] / "state.json").read_text())["state"]
        except OSError:  # replaced by the next one meanwhile
            return None
        return found


def done(users: int) -> set[tuple[str, str, str]]:
    return {(step, alias, "") for step in ("train", "test") for alias in list(PLACED)[:users]}


def ranks() -> list[psutil.Process]:
    """Ray Train's workers, the youngest last."""
    return sorted(titled("RayTrainWorker"), key=lambda process: process.create_time())


def alone(study: Study, user: UserSplit, placement: Placement) -> dict[str, torch.Tensor]:
    """The memory that a single process makes."""
    from milp_ray.model.base import load_base
    from milp_ray.trial.lifecycle import Trial

    base = load_base(study.model)
    with Trial(base, user, placement, study, phase="final", seed=study.seed) as trial:
        trial.run()
        assert base.attached is not None
        return base.attached.state()


def memory(final: Final, alias: str) -> dict[str, torch.Tensor]:
    return load_file(final.spec.layout.memory(alias) / "adapter_model.safetensors")


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], most: float) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], atol=most, rtol=0) for name in one
    )


def test_groups_of_one_side_by_side_make_the_memories_of_a_single_process(
    cluster: None, shallow_model: Path, tiny_user: UserSplit, tmp_path: Path
) -> None:
    study = study_of(shallow_model, ray={"max_concurrent": 2})
    final = Final(study, tiny_user, tmp_path)
    shown: list[str] = []
    final.during(
        lambda: shown.extend(
            wait_for(lambda: [r["status"] for r in train_runs() if r["name"] == "fin-final"])
        )
    )
    assert shown, "Train runs in the dashboard's API showed nothing"
    assert set(final.events) == done(3) and len(final.events) == 6
    assert [step for step, _, _ in final.events] == ["train"] * 3 + ["test"] * 3
    for alias, placement in PLACED.items():
        assert close(memory(final, alias), alone(study, tiny_user, placement), 0)
        scores = json.loads(final.spec.layout.scores(alias).read_text())
        assert scores["placement"] == placement.key and set(scores["models"]) == {"base", "own", "other"}
        assert scores["models"]["own"]["loss"] != scores["models"]["base"]["loss"]
    assert not (tmp_path / "checkpoints" / "u1").exists()
    assert not ranks()
    before = [list(final.events), [path.stat().st_mtime for path in tmp_path.rglob("*")]]
    final.run()  # nothing is left to do
    assert before == [final.events, [path.stat().st_mtime for path in tmp_path.rglob("*")]]


def test_a_group_of_two_makes_them_too_and_plain_peft_loads_them(
    cluster: None, shallow_model: Path, tiny_user: UserSplit, tmp_path: Path
) -> None:
    two = {"workers_per_trial": 2, "parallelism": "zero3", "max_concurrent": 1}
    study = study_of(shallow_model, ray=two, memory={"dropout": 0.0})
    final = Final(study, tiny_user, tmp_path, users=2)
    heard: set[str] = set()

    def listened() -> bool:
        if (tmp_path / "memories").exists():  # both ranks are at work, on the second user
            heard.update(listening_addresses(os.getpid()))
        return bool(heard)

    final.during(lambda: wait_for(listened))
    assert set(final.events) == done(2)
    assert heard <= {"127.0.0.1", "::1"}, "a door to the network"
    single = Final(study_of(shallow_model, memory={"dropout": 0.0}), tiny_user, tmp_path / "single", 2)
    single.run()
    for alias in ("u1", "u2"):
        assert close(memory(final, alias), memory(single, alias), 1e-4)
        mine, theirs = (
            json.loads(f.spec.layout.scores(alias).read_text())["models"] for f in (final, single)
        )
        for model in mine:
            assert mine[model] == pytest.approx(theirs[model], abs=1e-4)
    base = AutoModelForCausalLM.from_pretrained(shallow_model)
    loaded = PeftModel.from_pretrained(base, final.spec.layout.memory("u1"))
    assert close(
        {name: value for name, value in loaded.state_dict().items() if "lora" in name},
        {name.replace(".weight", ".default.weight"): value for name, value in memory(final, "u1").items()},
        0,
    )


TWO = {"workers_per_trial": 2, "parallelism": "zero2", "group_timeout": 6, "max_concurrent": 1}


@pytest.fixture(scope="module")
def undisturbed(
    cluster: None, shallow_model: Path, tiny_user: UserSplit, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """The memory that a group makes of which no rank is lost."""
    study = study_of(shallow_model, ray=TWO, final={"epochs": 60})
    whole = Final(study, tiny_user, tmp_path_factory.mktemp("whole"), 1)
    whole.run()
    return memory(whole, "u1")


@pytest.mark.nightly
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_rank_is_replaced_and_its_user_goes_on_where_it_was(
    undisturbed: dict[str, torch.Tensor], shallow_model: Path, tiny_user: UserSplit, tmp_path: Path, how: int
) -> None:
    study = study_of(shallow_model, ray=TWO, final={"epochs": 60, "checkpoint_steps": 5})
    final = Final(study, tiny_user, tmp_path, users=1)
    seen: list[tuple[int, int]] = []
    pids: list[int] = []

    def act() -> None:
        wait_for(lambda: (final.state() or {}).get("step", 0) >= 10)
        pids.extend(process.pid for process in ranks())
        os.kill(pids[1], how)
        seen.append((final.state() or {})["step"])
        wait_for(lambda: len(ranks()) == 2 and not {p.pid for p in ranks()} & set(pids))
        while not final.spec.has_memory("u1"):
            if found := final.state():
                seen.append((found["stage"], found["step"]))  # type: ignore[arg-type]
            time.sleep(0.02)

    final.during(act)
    assert set(final.events) == done(1)
    at, *after = seen
    assert after and min(step for stage, step in after if stage == 0) >= at  # type: ignore[operator, misc]
    assert close(memory(final, "u1"), undisturbed, 0)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


@pytest.mark.nightly
def test_a_killed_worker_costs_its_own_user_alone_a_try(
    cluster: None, shallow_model: Path, tiny_user: UserSplit, tmp_path: Path
) -> None:
    study = study_of(
        shallow_model,
        ray={"max_concurrent": 2, "max_failures": 0},
        final={"epochs": 100, "checkpoint_steps": 5},
    )
    final = Final(study, tiny_user, tmp_path, users=2)

    def act() -> None:
        wait_for(lambda: all((final.state(alias) or {}).get("step", 0) >= 5 for alias in ("u1", "u2")))
        ranks()[0].kill()

    final.during(act)
    failed = [(step, alias) for step, alias, reason in final.events if reason == "its workers were lost once"]
    assert len(failed) == 1 and failed[0][0] == "train"
    other = {"u1": "u2", "u2": "u1"}[failed[0][1]]
    assert [event for event in final.events if not event[2]] == [("train", other, ""), ("test", other, "")]


def test_ray_train_may_give_up_as_long_as_users_get_on(
    cluster: None,
    shallow_model: Path,
    tiny_user: UserSplit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    from milp_ray.tune.cluster.reservations import Reservation
    from milp_ray.tune.cluster.resources import TrialResources
    from milp_ray.tune.final import run as module

    study = study_of(shallow_model, model={"device": "auto"}, ray={"max_failures": 1})
    final = Final(study, tiny_user, tmp_path)
    wanted: list[int] = []
    trained: list[str] = []

    class GivesUp:
        """Two groups: the first trains a user, the second hangs. Then one group, then none."""

        def __init__(self, spec: Any, reservation: Reservation, coordinator: Any) -> None:
            assert spec.study.model.device == "cpu", "no worker has a GPU"
            self._groups, self._served = reservation.resources.concurrent, coordinator

        def fit(self) -> None:
            served = self._served
            ray.get(served.begin.remote(1))
            for group in range(self._groups):
                ray.get([served.start.remote(group, 0, None), served.next.remote(group)])
            if self._groups:
                folder = final.spec.layout.memory(f"u{len(wanted)}")
                folder.mkdir(parents=True)
                (folder / "adapter_config.json").touch()
                ray.get(served.end.remote(0, ""))
            raise RuntimeError("no room")

    def trial_resources(study: Study, stop_requested: object, say: object, groups: int) -> TrialResources:
        wanted.append(groups)
        return TrialResources({"CPU": 0.5}, max(0, 3 - len(wanted)))

    monkeypatch.setattr(module, "trial_resources", trial_resources)
    monkeypatch.setattr(module, "_trainer", GivesUp)
    with pytest.raises(ClusterError, match="gave up the final job 2 times and no user got on in between"):
        module.run_final(final.spec, lambda: False, lambda event: trained.append(event.alias))
    # The group that is no longer there had u2, which the next ones found.
    assert trained == ["u1", "u2"] and wanted == [3, 3, 3]


def test_stopped_in_the_middle_it_goes_on_later(
    cluster: None, shallow_model: Path, tiny_user: UserSplit, tmp_path: Path
) -> None:
    study = study_of(shallow_model, final={"epochs": 100, "checkpoint_steps": 5}, ray={"max_concurrent": 1})
    final = Final(study, tiny_user, tmp_path, users=2)

    def act() -> None:
        wait_for(lambda: (final.state() or {}).get("step", 0) >= 5)
        final.stop = True

    final.during(act)
    state = final.state()
    assert state is not None and not final.spec.has_memory("u1") and not final.events
    # The newest state is damaged: the one before is used, and said.
    newest = max(final.spec.layout.checkpoints("u1").glob("[0-9]*"))
    os.truncate(newest / "adapter.safetensors", 100)
    final.stop = False
    final.run()
    assert set(final.events) == done(2)
    assert any("damaged" in note for note in final.notes)
    assert close(memory(final, "u1"), alone(study, tiny_user, PLACED["u1"]), 0)


@contextlib.contextmanager
def somebody_else(free: int) -> Iterator[Callable[[], None]]:
    """Another user's actor, which leaves so many of the cluster's CPUs free; it ends by a call."""
    import ray

    class Other:
        def ready(self) -> None: ...

    other = ray.remote(num_cpus=ray.cluster_resources()["CPU"] - free)(Other).remote()
    ray.get(other.ready.remote())
    try:
        yield lambda: ray.kill(other)
    finally:
        ray.kill(other)


def nothing_is_held() -> bool:
    from ray.util import placement_group_table

    return all(found["state"] == "REMOVED" for found in placement_group_table().values())


@pytest.mark.nightly
def test_where_others_hold_a_part_of_the_cluster_fewer_groups_work(
    cluster: None, shallow_model: Path, tiny_user: UserSplit, tmp_path: Path
) -> None:
    final = Final(study_of(shallow_model), tiny_user, tmp_path)
    most: list[int] = []

    def act() -> None:
        while len(final.events) < 6:
            most.append(len(ranks()))
            time.sleep(0.1)

    with somebody_else(free=1):
        final.during(act)
    assert set(final.events) == done(3) and max(most) == 2
    assert final.said[0].startswith("room for 2 of 3 groups of workers: others hold ")


@pytest.mark.nightly
def test_where_others_come_first_it_waits_and_is_not_charged(
    cluster: None,
    shallow_model: Path,
    tiny_user: UserSplit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others take the reserved room before Ray Train asks for it; later they leave."""
    from milp_ray.tune.final import run as module

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    reserve, others, looks = module.reserve, contextlib.ExitStack(), list[str]()

    def taken(*arguments: Any) -> Any:
        reservation = reserve(*arguments)
        looks.append("taken" if not looks else "held")
        if looks == ["taken"]:
            reservation.close()
            leave.append(others.enter_context(somebody_else(free=0)))
        return reservation

    leave: list[Callable[[], None]] = []
    monkeypatch.setattr(module, "reserve", taken)
    final = Final(study_of(shallow_model, ray={"max_failures": 0}), tiny_user, tmp_path, users=1)

    def act() -> None:
        wait_for(lambda: any(text.startswith("waiting for room: 0.5 CPUs") for text in final.said))
        assert not ranks() and looks == ["taken"]
        leave[0]()

    with others:
        final.during(act)
    assert set(final.events) == done(1) and len(final.said) == 2
    assert final.said[0].startswith("others took the room")


@pytest.mark.parametrize("asked", [False, True])
def test_a_stop_ends_waiting_for_room(
    cluster: None,
    shallow_model: Path,
    tiny_user: UserSplit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: bool,
) -> None:
    """Ours, and also that of Ray Train (``asked``), which would look up after ten minutes."""
    from ray.util import placement_group_table

    from milp_ray.tune.cluster.resources import TrialResources
    from milp_ray.tune.final import run as module

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    if asked:
        resources = TrialResources({"CPU": 0.5}, 1)
        reservation = SimpleNamespace(resources=resources, placement_groups=[], close=lambda: None)
        monkeypatch.setattr(module, "reserve", lambda *_: reservation)
    final = Final(study_of(shallow_model), tiny_user, tmp_path, users=1)

    def act() -> None:
        def pending() -> bool:
            return any(found["state"] == "PENDING" for found in placement_group_table().values())

        wait_for(pending if asked else lambda: final.said)
        final.stop = True

    with somebody_else(free=0):
        final.during(act)
        assert not final.events and (asked or nothing_is_held())
    wait_for(nothing_is_held)


def test_a_fault_that_passes_does_not_end_the_job(
    cluster: None, shallow_model: Path, tiny_user: UserSplit, tmp_path: Path
) -> None:
    final = Final(study_of(shallow_model, ray={"max_failures": 1}), tiny_user, tmp_path, users=1)
    (tmp_path / "run.json").unlink()  # a mount that comes late

    def act() -> None:
        wait_for(lambda: final.said)
        (tmp_path / "run.json").touch()

    final.during(act)
    assert set(final.events) == done(1)
    (said,) = final.said
    assert "does not see the run folder" in said and "started again" in said


@pytest.mark.nightly
def test_what_no_worker_can_mend_ends_the_job_with_its_reason(
    cluster: None, shallow_model: Path, tiny_user: UserSplit, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        Final(study_of(tmp_path / "nowhere"), tiny_user, tmp_path, users=1).run()
    once = study_of(shallow_model, ray={"max_failures": 0})
    blind = Final(once, tiny_user, tmp_path / "elsewhere", users=1)
    (tmp_path / "elsewhere" / "run.json").unlink()
    with pytest.raises(ClusterError, match="does not see the run folder"):
        blind.run()
    (tmp_path / "memories").write_text("a file in the way")
    full = Final(once, tiny_user, tmp_path, users=1)
    with pytest.raises(
        StorageError, match=r"a file stands where a folder is needed|Not a directory"
    ) as ended:
        full.run()
    assert ended.value.problems[0].where.startswith("node 127.0.0.1, ") and not blind.said + full.said
    wait_for(lambda: not ranks())
