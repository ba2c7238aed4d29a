"""States of a training at a URL: what one node's ranks keep, another node's go on from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from milp_ray.errors import StorageError
from milp_ray.model.parallel.group import SOLO, Group
from milp_ray.storage import close_mirrors, mirror_at, names_in
from milp_ray.storage.objects import Objects
from milp_ray.training.checkpoint import Checkpoints, TrainingState
from tests.storage.conftest import Failing
from tests.trial.ranks import on_ranks


def state(step: int, rank: int = 0) -> TrainingState:
    def tensor(value: float) -> dict[str, torch.Tensor]:
        return {"x": torch.full((3,), value)}

    return TrainingState(0, step, 10 * step, 1.0, tensor(step), tensor(step + rank / 10), tensor(rank))


def kept(folder: Path, group: Group = SOLO) -> Checkpoints:
    return Checkpoints(folder, group, replicated=False, made_with={"seed": 1}, every=1)


@pytest.fixture
def folder(s3: str) -> Path:
    return mirror_at(f"{s3}/run").root / "checkpoints" / "u-a"


def test_another_machine_goes_on_from_the_last_state_and_two_stay(
    folder: Path, s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert kept(folder).load() is None
    for step in (1, 2, 3):
        kept(folder).save(state(step))
    assert names_in(folder) == {"000002", "000003"}
    close_mirrors()
    monkeypatch.setenv("MILP_RAY_CACHE", str(tmp_path / "another machine"))
    folder = mirror_at(f"{s3}/run").root / "checkpoints" / "u-a"
    checkpoints = kept(folder)
    found = checkpoints.load()
    assert found is not None and found.step == 3 and torch.equal(found.adapter["x"], state(3).adapter["x"])
    assert not checkpoints.notes
    checkpoints.clear()
    assert names_in(folder) == set() and checkpoints.load() is None


def test_a_state_that_could_not_be_written_whole_is_none(folder: Path, s3: str) -> None:
    kept(folder).save(state(1))
    objects: Objects = mirror_at(f"{s3}/run").objects
    between = objects._fs = Failing(objects._fs)
    objects._pauses = (0.0,)
    for part in ("adapter", "rank-0", "state.json"):
        between.error, between.left, between.matching = OSError("AWS Error NETWORK_CONNECTION"), 99, part
        with pytest.raises(StorageError, match="NETWORK_CONNECTION"):
            kept(folder).save(state(2))
        between.error = None
        checkpoints = kept(folder)
        found = checkpoints.load()
        assert found is not None and found.step == 1 and not checkpoints.notes
    # As a worker leaves it that is killed half way: files, and no commit marker.
    objects.put("checkpoints/u-a/000002/adapter.safetensors", b"half")
    objects.put("checkpoints/u-a/000002/rank-7.safetensors", b"of a larger group")
    kept(folder).save(state(2))
    assert names_in(folder / "000002") == {"adapter.safetensors", "rank-0.safetensors", "state.json"}
    found = kept(folder).load()
    assert found is not None and found.step == 2


def test_a_damaged_state_is_passed_over(folder: Path, s3: str) -> None:
    for step in (1, 2):
        kept(folder).save(state(step))
    mirror_at(f"{s3}/run").objects.put("checkpoints/u-a/000002/adapter.safetensors", b"damaged")
    checkpoints = kept(folder)
    found = checkpoints.load()
    assert found is not None and found.step == 1
    assert len(checkpoints.notes) == 1 and "damaged" in checkpoints.notes[0]


def on_two_nodes(group: Group, folder: Path, place: str) -> tuple[str, int, float, float]:
    """Each rank has a mirror of its own, as on nodes that share nothing."""
    os.environ["MILP_RAY_CACHE"] = f"{place}/{group.rank}"
    checkpoints = kept(folder, group)
    for step in (1, 2, 3):
        checkpoints.save(state(step, group.rank))
    found = checkpoints.load()
    assert found is not None
    return str(folder), found.step, float(found.optimizer["x"][0]), float(found.random["x"][0])


@pytest.mark.slow
def test_every_rank_finds_its_own_part(folder: Path, tmp_path: Path) -> None:
    found = on_ranks(on_two_nodes, folder, str(tmp_path))
    assert [step for _, step, _, _ in found] == [3, 3]
    assert [round(own, 1) for _, _, own, _ in found] == [3.0, 3.1]
    assert [random for *_, random in found] == [0, 1]
    assert names_in(folder) == {"000002", "000003"}
    assert names_in(folder / "000003") == {
        "adapter.safetensors", "rank-0.safetensors", "rank-1.safetensors", "state.json",
    }  # fmt: skip
