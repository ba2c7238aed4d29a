"""A training that was cut off goes on to the very memory that it would have made."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from milp_ray.config.models import FinalSettings, MemorySettings, ModelSettings, OptimizerSettings, Study
from milp_ray.data.records import UserSplit
from milp_ray.errors import StorageError
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel, load_base
from milp_ray.model.parallel.group import SOLO, Group
from milp_ray.model.parallel.sharding import Parallel
from milp_ray.training.checkpoint import Checkpoints
from milp_ray.training.loop import IsolatedRNG
from milp_ray.trial.lifecycle import Trial, TrialStopped
from tests.trial.common import changed
from tests.trial.ranks import on_ranks

STRATEGIES = ("ddp", "zero2", "zero3")
PLACEMENT = Placement.from_key("0:4,1:2")


def study_of(model: str = "models/tiny") -> Study:
    """With dropout, so that random numbers matter."""
    return changed(
        model=ModelSettings(path=model),
        memory=MemorySettings(ranks=(2, 4), dropout=0.2),
        optimizer=OptimizerSettings(learning_rate=1e-2, batch_size=3),
        final=FinalSettings(epochs=2, instruct_epochs=2),
    )


def kept(folder: Path, group: Group = SOLO, every: int = 0, replicated: bool = True) -> Checkpoints:
    return Checkpoints(folder, group, replicated, {"placement": PLACEMENT.key}, every)


def trained(
    base: BaseModel, user: UserSplit, checkpoints: Checkpoints | None = None, stop: int | None = None
) -> tuple[dict[str, Tensor], int, int]:
    """The adapter after all steps, or after ``stop`` of them; steps done; tokens trained on."""
    steps = 0
    study = study_of(base.settings.path)
    with Trial(base, user, PLACEMENT, study, phase="final", seed=7, checkpoints=checkpoints) as trial:
        work = trial.steps()
        try:
            for progress in work:
                steps += progress.loss is not None
                if steps == stop and base.parallel.group.rank == 0:
                    work.close()
                    return {}, steps, 0
        except TrialStopped:
            return {}, steps, 0
        assert base.attached is not None
        return base.attached.state(), steps, trial.cost().train_tokens


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_resumed_after_any_step_it_ends_as_if_never_stopped(
    llama: BaseModel, tiny_user: UserSplit, tmp_path: Path
) -> None:
    whole, steps, tokens = trained(llama, tiny_user)
    assert steps > 4
    for stop in (1, steps // 2, steps - 1):
        folder = tmp_path / str(stop)
        trained(llama, tiny_user, kept(folder), stop)
        found, more, total = trained(llama, tiny_user, kept(folder))
        assert more == steps - stop
        assert total == tokens
        assert same(found, whole)


def test_states_are_kept_on_the_way_and_the_last_two_stay(
    llama: BaseModel, tiny_user: UserSplit, tmp_path: Path
) -> None:
    checkpoints = kept(tmp_path / "c", every=1)
    _, steps, _ = trained(llama, tiny_user, checkpoints)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [f"{steps - 1:06d}", f"{steps:06d}"]
    checkpoints.clear()
    assert not (tmp_path / "c").exists()


def on_two_ranks(group: Group, model: str, user: UserSplit, folder: Path) -> dict[str, bool]:
    result = {}
    for strategy in STRATEGIES:
        parallel = Parallel(group, strategy)  # type: ignore[arg-type]
        base = load_base(study_of(model).model, parallel)
        whole, steps, _ = trained(base, user)
        replicated = not parallel.zero
        trained(base, user, kept(folder / strategy, group, replicated=replicated), stop=steps // 2)
        checkpoints = kept(folder / strategy, group, replicated=replicated)
        found, more, _ = trained(base, user, checkpoints)
        result[strategy] = same(found, whole) and more == steps - steps // 2 and not checkpoints.notes
    return result


@pytest.mark.slow
def test_every_way_of_sharing_resumes_exactly(
    shallow_model: Path, tiny_user: UserSplit, tmp_path: Path
) -> None:
    for found in on_ranks(on_two_ranks, str(shallow_model), tiny_user, tmp_path):
        assert found == dict.fromkeys(STRATEGIES, True)
    # An optimizer that every rank holds is written once.
    sizes = {path.parent.parent.name: path.stat().st_size for path in tmp_path.glob("*/*/rank-1.safetensors")}
    assert sizes["ddp"] < 0.5 * sizes["zero2"]


def test_random_numbers_of_another_kind_of_device_are_no_obstacle() -> None:
    """A training that was interrupted on a GPU goes on without one, and the other way round."""

    def drawn(stream: IsolatedRNG) -> Tensor:
        with stream.active():
            return torch.rand(3)

    before, after = (IsolatedRNG(1, torch.device("cpu")) for _ in range(2))
    drawn(before)
    after.load(before.state() | {"1": torch.zeros(16, dtype=torch.uint8)})
    assert torch.equal(drawn(after), drawn(before))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["adapter.safetensors", "rank-0.safetensors", "state.json"])
def test_a_damaged_state_is_passed_over_for_the_one_before(
    llama: BaseModel, tiny_user: UserSplit, tmp_path: Path, harm: Callable[[Path], None], name: str
) -> None:
    whole, steps, _ = trained(llama, tiny_user)
    trained(llama, tiny_user, kept(tmp_path / "c", every=2), stop=5)
    newest = max((tmp_path / "c").iterdir())
    harm(newest / name)
    checkpoints = kept(tmp_path / "c")
    found, more, _ = trained(llama, tiny_user, checkpoints)
    assert same(found, whole) and more == steps - 4
    assert len(checkpoints.notes) == 1 and newest.name in checkpoints.notes[0]


def test_without_a_usable_state_it_begins_again(
    llama: BaseModel, tiny_user: UserSplit, tmp_path: Path
) -> None:
    whole, steps, _ = trained(llama, tiny_user)
    trained(llama, tiny_user, kept(tmp_path / "c", every=2), stop=5)
    other = Checkpoints(tmp_path / "c", SOLO, True, {"placement": "0:8"}, 0)
    found, more, _ = trained(llama, tiny_user, other)
    assert more == steps and same(found, whole)
    assert all("other settings" in note for note in other.notes) and other.notes


def test_a_state_of_another_version_is_passed_over(
    llama: BaseModel, tiny_user: UserSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("milp_ray.training.checkpoint._FORMAT", 1)
        trained(llama, tiny_user, kept(tmp_path / "c", every=2), stop=5)
    whole, steps, _ = trained(llama, tiny_user)
    checkpoints = kept(tmp_path / "c")
    found, more, _ = trained(llama, tiny_user, checkpoints)
    assert more == steps and same(found, whole)
    assert checkpoints.notes and all("another version" in note for note in checkpoints.notes)


def test_a_disk_that_is_full_leaves_the_earlier_states(
    llama: BaseModel, tiny_user: UserSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(llama, tiny_user, kept(tmp_path / "c", every=2), stop=4)
    shutil.copytree(tmp_path / "c", tmp_path / "before")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        trained(llama, tiny_user, kept(tmp_path / "c", every=1))
    monkeypatch.undo()
    here, before = (
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in (tmp_path / "c", tmp_path / "before")
    )
    assert here == before
    assert llama.attached is None
