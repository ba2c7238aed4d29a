"""Rows of a batch have adapters of their own: as if each stood alone on the base with PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from milp_ray.errors import StorageError
from milp_ray.memory.adapters import lora_config, save_adapter
from milp_ray.memory.placement import Placement
from milp_ray.model import row_adapters
from milp_ray.model.base import BaseModel, loaded
from milp_ray.model.row_adapters import Row, SideBySide, SoftTokens, beneath, concatenated, load_lora
from tests.trial.common import Snapshot

IDS = [5, 9, 4, 7, 3]
KEYS = ("1:2,3:4,11:2", "3:8", "0:2,3:2")


@pytest.fixture(params=["llama", "gpt2", "roberta"])
def base(request: pytest.FixtureRequest, tiny_bases: dict[str, BaseModel]) -> Iterator[BaseModel]:
    base = tiny_bases[request.param]
    snapshot = Snapshot(base)
    yield base
    snapshot.check()


@pytest.fixture
def folders(base: BaseModel, tmp_path: Path) -> list[Path]:
    """Three adapters, of a scaling that is not 1."""
    for number, key in enumerate(KEYS):
        attached = base.attach(lora_config(Placement.from_key(key), base.architecture, scaling=1.5))
        draw = torch.Generator().manual_seed(number)
        for matrix in attached.parameters():
            matrix.data = 0.3 * torch.randn(matrix.shape, generator=draw)
        save_adapter(attached, tmp_path / str(number), "x")
        base.detach()
    return [tmp_path / str(number) for number in range(len(KEYS))]


def logits(base: BaseModel, rows: int = 1) -> Tensor:
    with base.measuring():
        return base.logits(
            lambda hidden: hidden[:, -1], input_ids=torch.tensor([IDS] * rows), use_cache=False
        )


@pytest.mark.parametrize("launch", [0, 10**12], ids=["run by run", "masked"])
def test_each_row_is_as_if_alone(
    base: BaseModel, folders: list[Path], launch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_adapters, "_AS_LONG_AS_A_LAUNCH", launch)
    expected = [logits(base)[0]]
    for folder in folders:
        with loaded(base, folder):
            expected.append(logits(base)[0])
    assert all((one - expected[0]).abs().max() > 1e-3 for one in expected[1:])
    loras = [None, *(load_lora(base, folder) for folder in folders)]
    order = [2, 2, 0, 1, 3, 2]
    side = SideBySide(base, [Row(len(IDS), loras[number]) for number in order], left=False)
    with side.on(base):
        found = logits(base, len(order))
        torch.testing.assert_close(found, torch.stack([expected[n] for n in order]), rtol=1e-4, atol=1e-5)
        side.select([4, 1])  # the others have ended
        found = logits(base, 2)
        torch.testing.assert_close(found, torch.stack([expected[3], expected[2]]), rtol=1e-4, atol=1e-5)
        side.select([2])
        assert torch.equal(logits(base)[0], expected[0])


def test_two_adapters_are_one_of_all_their_ranks(base: BaseModel, folders: list[Path]) -> None:
    first, second = (load_lora(base, folder) for folder in folders[:2])
    with loaded(base, folders[1]), beneath(base, first):
        expected = logits(base)
    both = concatenated(first, second)
    assert {len(a) for name, (a, _) in both.modules.items() if ".3." in name} == {12}
    with SideBySide(base, [Row(len(IDS), both)], left=False).on(base):
        torch.testing.assert_close(logits(base), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("left", [True, False])
def test_soft_tokens_stand_where_their_tokens_would(base: BaseModel, left: bool) -> None:
    table = base.model.get_input_embeddings().weight
    other = [5, 40, 41, 7, 3]
    with base.measuring():
        expected = base.logits(lambda hidden: hidden[:, -1], input_ids=torch.tensor([other]), use_cache=False)
    rows = [Row(len(IDS)), Row(len(IDS), soft=SoftTokens(table[[40, 41]], 1))]
    with SideBySide(base, rows, left=left).on(base):
        found = logits(base, 2)
    torch.testing.assert_close(found[1:], expected)
    torch.testing.assert_close(found[:1], logits(base))


def test_a_strangers_adapter_is_refused(
    base: BaseModel, tiny_bases: dict[str, BaseModel], folders: list[Path]
) -> None:
    others = [one for one in tiny_bases.values() if one is not base]
    for other in others:
        with pytest.raises(StorageError, match="does not fit the base model"):
            load_lora(other, folders[0])
