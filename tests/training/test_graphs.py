"""Steps of few shapes, each captured once: the same training, whatever is padded.

Capturing itself needs a GPU (tests/training/test_on_gpu.py); here a piece of work is done again by calling it
again, on the memory that a graph would have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from milp_ray.data.records import UserSplit
from milp_ray.memory.adapters import lora_config
from milp_ray.training import graphs
from milp_ray.training.base import BaseModel
from milp_ray.training.batches import Example, Part, collate, token_losses
from milp_ray.training.graphs import Graphs, Work
from milp_ray.training.trial import Trial
from tests.training.common import PLACED, STUDY, changed, numbers

DRAW = torch.Generator().manual_seed(5)


@pytest.fixture(autouse=True)
def drawn_anew() -> None:
    """The same numbers whichever tests ran before."""
    DRAW.manual_seed(5)


def texts(lengths: list[int], start: int = 1) -> list[Example]:
    return [Example(tuple(torch.randint(3, 60, (n,), generator=DRAW).tolist()), start) for n in lengths]


class Recorder:
    """Captures by remembering."""

    def __init__(self, usable: bool = True) -> None:
        self.captured: list[Work] = []
        self.replays = 0
        self.usable = usable

    def __call__(self, work: Work) -> Work | None:
        self.captured.append(work)

        def again() -> Tensor:
            self.replays += 1
            return work()

        return again if self.usable else None


@pytest.fixture(params=["llama", "gpt2", "roberta"])
def base(request: pytest.FixtureRequest, tiny_bases: dict[str, BaseModel]) -> BaseModel:
    return tiny_bases[request.param]


def gradients(base: BaseModel, part: Part) -> tuple[float, list[Tensor]]:
    assert base.attached is not None
    parameters = base.attached.parameters()
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    value = float(part.backward())
    return value, [parameter.grad for parameter in parameters]  # type: ignore[misc]


@contextlib.contextmanager
def adapted(base: BaseModel) -> Iterator[BaseModel]:
    """The base with a random adapter on it."""
    attached = base.attach(lora_config(PLACED, base.architecture))
    for parameter in attached.parameters():
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=DRAW))
    try:
        yield base
    finally:
        base.detach()


@pytest.fixture
def adapted_llama(tiny_bases: dict[str, BaseModel]) -> Iterator[BaseModel]:
    """The tiny Llama, adapted."""
    with adapted(tiny_bases["llama"]) as base:
        yield base


@pytest.mark.parametrize("start", [1, 4])
def test_padded_parts_are_the_parts(base: BaseModel, start: int) -> None:
    batches = [texts([9 + step, 5, 14, 7][: 4 - step % 3], start) for step in range(8)] * 3
    with adapted(base):
        record = Recorder()
        made = Graphs(base, batches, record)
        for batch in batches:
            targets = sum(text.targets for text in batch)
            wanted, expected = gradients(base, Part(base, collate(batch, base), targets))
            found, grads = gradients(base, made.part(batch, targets))
            assert found == pytest.approx(wanted, rel=1e-5)
            for one, other in zip(grads, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        assert record.replays > len(batches) / 2
        assert len(record.captured) <= 4, "shapes are few"


def test_a_batch_gives_the_same_whenever_it_comes(adapted_llama: BaseModel) -> None:
    """Before, when and after its shape is captured."""
    batch = texts([8, 8])
    made = Graphs(adapted_llama, [batch] * 9, Recorder())
    plain, *values = (gradients(adapted_llama, made.part(batch, 14))[0] for _ in range(9))
    assert len(set(values)) == 1
    assert values[0] == pytest.approx(plain, abs=1e-6)


def test_a_rank_without_texts_counts_for_nothing(adapted_llama: BaseModel) -> None:
    batch = texts([8])
    made = Graphs(adapted_llama, [batch] * 9, Recorder())
    for _ in range(3):
        value, grads = gradients(adapted_llama, made.part(batch, float("inf")))
        assert value == 0
        assert not any(grad.any() for grad in grads)


def test_few_uses_are_not_captured(adapted_llama: BaseModel) -> None:
    record = Recorder()
    batches = [texts([40]), texts([20]), texts([40])]
    made = Graphs(adapted_llama, batches, record)
    for batch in batches:
        gradients(adapted_llama, made.part(batch, 3))
    assert not record.captured


def test_what_cannot_be_captured_is_done_as_usual(adapted_llama: BaseModel) -> None:
    record = Recorder(usable=False)
    batch = texts([8, 5])
    made = Graphs(adapted_llama, [batch] * 20, record)
    expected, _ = gradients(adapted_llama, Part(adapted_llama, collate(batch, adapted_llama), 11))
    for _ in range(20):
        assert gradients(adapted_llama, made.part(batch, 11))[0] == pytest.approx(expected, rel=1e-6)
    assert len(record.captured) == 1, "tried once"


def test_targets_that_are_not_wanted_lose_nothing(tiny_bases: dict[str, BaseModel]) -> None:
    base = tiny_bases["llama"]
    batch = texts([6, 3])
    shape = Graphs(base, [batch]).shape(batch)
    with torch.no_grad():
        plain, padded = (
            token_losses(base, collate(batch, base)),
            token_losses(base, collate(batch, base, shape)),
        )
    torch.testing.assert_close(padded[:7], plain)
    assert not padded[7:].any()


def test_a_whole_trial(base: BaseModel, tiny_user: UserSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stages and the measurement, with the LoRA modules as they are on a GPU."""
    study = changed(trial=STUDY.trial.model_copy(update={"epochs": 8, "stages": ("inject", "instruct")}))
    with Trial(base, tiny_user, PLACED, study, seed=5) as trial:
        expected = numbers(trial.run())
    record = Recorder()
    monkeypatch.setattr(graphs, "Pool", lambda: record)
    monkeypatch.setattr("milp_ray.evaluation.decoding.Pool", lambda: record)
    monkeypatch.setattr(base, "fused", True)
    with Trial(base, tiny_user, PLACED, study, seed=5) as trial:
        found = numbers(trial.run())
    assert record.captured
    assert found == pytest.approx(expected, rel=1e-4)
