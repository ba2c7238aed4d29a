"""On a GPU alone: captured steps and tokens, memory that comes back, memory that runs out."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import pytest
import torch

from milp_ray.config.models import ModelSettings
from milp_ray.data.records import UserSplit
from milp_ray.errors import TrialFailed
from milp_ray.evaluation.decoding import DynamicCacheDecoder, StaticCacheDecoder, decoder
from milp_ray.memory.adapters import lora_config
from milp_ray.model import cuda_graphs as graphs
from milp_ray.model.base import BaseModel, load_base
from milp_ray.trial.lifecycle import Trial
from tests.trial.common import PLACED, STUDY, Snapshot, changed, numbers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

LONGER = changed(
    trial=STUDY.trial.model_copy(
        update={"epochs": 8, "stages": ("inject", "instruct"), "max_new_tokens": 12, "eval_batch_size": 4}
    )
)
PROMPTS = [[5, 9, 4], [7, 3, 8, 6, 12], [11], [4, 4], [19, 3, 5, 7], [8, 15]]


@pytest.fixture(params=["llama", "gpt2", "roberta"])
def base(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> BaseModel:
    return load(tiny_models[request.param], "float32")


def load(folder: Path, dtype: str) -> BaseModel:
    return load_base(ModelSettings(path=str(folder), device="cuda", dtype=dtype))


def measured(base: BaseModel, user: UserSplit, study: object = LONGER) -> tuple[float, ...]:
    with Trial(base, user, PLACED, study, seed=5) as trial:  # type: ignore[arg-type]
        return numbers(trial.run())


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each piece of work could be captured."""
    found: list[bool] = []

    class Watched(graphs.Pool):
        def __call__(self, work: graphs.Work) -> graphs.Work | None:
            replay = super().__call__(work)
            found.append(replay is not None)
            return replay

    monkeypatch.setattr(graphs, "Pool", Watched)
    monkeypatch.setattr("milp_ray.evaluation.decoding.Pool", Watched)
    return found


def test_fused_and_captured_trials_give_the_plain_numbers(
    base: BaseModel, tiny_user: UserSplit, captures: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Snapshot(base)
    found = measured(base, tiny_user)
    assert captures and all(captures)
    before.check()
    assert measured(base, tiny_user) == pytest.approx(found, rel=1e-5)
    captures.clear()
    monkeypatch.setattr(base, "fused", False)
    assert measured(base, tiny_user) == pytest.approx(found, rel=1e-3)
    assert not captures


def test_half_precision(tiny_models: dict[str, Path], tiny_user: UserSplit, captures: list[bool]) -> None:
    wide, narrow = (load(tiny_models["llama"], dtype) for dtype in ("float32", "bfloat16"))
    expected, found = (measured(base, tiny_user) for base in (wide, narrow))
    assert captures and all(captures)
    assert found[0] == pytest.approx(expected[0], rel=0.02)


def test_dropout_is_drawn_anew_in_every_step(
    tiny_models: dict[str, Path], tiny_user: UserSplit, captures: list[bool]
) -> None:
    base = load(tiny_models["llama"], "float32")
    study = LONGER.model_copy(update={"memory": STUDY.memory.model_copy(update={"dropout": 0.3})})
    one, again = measured(base, tiny_user, study), measured(base, tiny_user, study)
    assert one == pytest.approx(again, rel=1e-5)
    assert one[0] != pytest.approx(measured(base, tiny_user)[0], rel=1e-5)


def test_tokens(base: BaseModel, captures: list[bool]) -> None:
    attached = base.attach(lora_config(PLACED, base.architecture))
    for index, parameter in enumerate(attached.parameters()):
        draw = torch.Generator().manual_seed(index)
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    batches = [PROMPTS[:4], PROMPTS[4:]]
    decode = decoder(base, batches, 30)
    assert isinstance(decode, StaticCacheDecoder)
    expected = [list(DynamicCacheDecoder(base, 30)(batch))[-1] for batch in batches]
    assert [list(decode(batch))[-1] for batch in batches] == expected
    assert captures == [True]


def test_nothing_is_kept(base: BaseModel, tiny_user: UserSplit) -> None:
    """Nor until the next full collection, which in a worker may be long in coming."""

    def held() -> tuple[int, int]:
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    measured(base, tiny_user)
    gc.collect()
    gc.disable()
    try:
        before = held()
        for _ in range(5):
            measured(base, tiny_user)
            assert held() == before
    finally:
        gc.enable()


def test_memory_that_runs_out(
    tiny_models: dict[str, Path], tiny_user: UserSplit, caplog: pytest.LogCaptureFixture
) -> None:
    """The trial fails with its size named, and the next one is as ever."""
    base = load(tiny_models["llama"], "float32")
    expected = measured(base, tiny_user)
    gc.collect()
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total)
    try:
        with caplog.at_level(logging.WARNING), pytest.raises(TrialFailed, match="out of"):
            measured(base, tiny_user)
        assert base.attached is None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert measured(base, tiny_user) == pytest.approx(expected, rel=1e-5)


def test_room_for_a_step_but_not_for_a_graph(
    tiny_models: dict[str, Path], tiny_user: UserSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then steps go on as usual."""
    base = load(tiny_models["llama"], "float32")
    expected = measured(base, tiny_user)
    whole = graphs.Pool.__call__

    def crowded(self: graphs.Pool, work: graphs.Work) -> graphs.Work | None:
        def more() -> torch.Tensor:
            torch.empty(2**42, dtype=torch.uint8, device="cuda")
            return work()

        return whole(self, more)

    monkeypatch.setattr(graphs.Pool, "__call__", crowded)
    assert measured(base, tiny_user) == pytest.approx(expected, rel=1e-4)
