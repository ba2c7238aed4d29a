"""Steps of few shapes, each captured once: the same training, whatever is padded.

Capturing itself needs a GPU (tests/trial/test_on_gpu.py); here a replay calls the work again, on
the memory that a graph would have.
"""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from milp_ray.config.models import ModelSettings
from milp_ray.data.records import UserSplit
from milp_ray.errors import TrialFailed
from milp_ray.evaluation.decoding import DynamicCacheDecoder, StaticCacheDecoder, decoder
from milp_ray.memory.adapters import lora_config
from milp_ray.model import cuda_graphs as graphs
from milp_ray.model.base import BaseModel, load_base
from milp_ray.model.batches import Example, RankLoss, collate, token_losses
from milp_ray.model.cuda_graphs import Graphs, Pool, Work
from milp_ray.model.parallel.sharding import ALONE
from milp_ray.training.optimizer_steps import stepping
from milp_ray.trial.lifecycle import Trial
from tests.trial.common import PLACED, STUDY, changed, numbers

DRAW = torch.Generator().manual_seed(5)
LONGER = changed(
    trial=STUDY.trial.model_copy(
        update={"epochs": 8, "instruct_epochs": 8, "stages": ("inject", "instruct"), "max_new_tokens": 16}
    )
)


@pytest.fixture(autouse=True)
def drawn_anew() -> None:
    """The same numbers whichever tests ran before."""
    DRAW.manual_seed(5)


def texts(lengths: list[int], prompt_length: int = 1) -> list[Example]:
    return [
        Example(tuple(torch.randint(3, 60, (n,), generator=DRAW).tolist()), prompt_length) for n in lengths
    ]


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


class Graph:
    """Captures as a GPU does: what comes of it has memory of its own, and no hold on the work."""

    alive: ClassVar[weakref.WeakSet[Graph]] = weakref.WeakSet()

    def __init__(self, work: Work) -> None:
        self._work = weakref.WeakMethod(work)  # type: ignore[arg-type]
        self.alive.add(self)

    def __call__(self) -> Tensor:
        work = self._work()
        assert work is not None
        return work()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Counting references has to do, as in a worker, where full collections are rare."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def tensors() -> int:
    """Number of floating tensors, those in dead cycles included. By type(): see test_trial.py."""
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return sum(tensor.is_floating_point() for tensor in found)


def refused() -> RuntimeError:
    return torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture(params=["llama", "gpt2", "roberta"])
def base(request: pytest.FixtureRequest, tiny_bases: dict[str, BaseModel]) -> BaseModel:
    return tiny_bases[request.param]


def gradients(base: BaseModel, loss: RankLoss) -> tuple[float, list[Tensor]]:
    assert base.attached is not None
    parameters = base.attached.parameters()
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    value = float(loss.backward())
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


@pytest.mark.parametrize("prompt_length", [1, 4])
def test_padded_losses_are_the_losses(base: BaseModel, prompt_length: int) -> None:
    batches = [texts([9 + step, 5, 14, 7][: 4 - step % 3], prompt_length) for step in range(8)] * 3
    with adapted(base):
        record = Recorder()
        made = Graphs(base, batches, record)
        for batch in batches:
            num_labels = sum(text.num_labels for text in batch)
            wanted, expected = gradients(base, RankLoss(base, collate(batch, base), num_labels))
            found, grads = gradients(base, made.rank_loss(batch, num_labels))
            assert found == pytest.approx(wanted, rel=1e-5)
            for one, other in zip(grads, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        assert record.replays > len(batches) / 2
        assert len(record.captured) <= 4, "shapes are few"


def test_a_batch_gives_the_same_whenever_it_comes(adapted_llama: BaseModel) -> None:
    """Before, when and after its shape is captured."""
    batch = texts([8, 8])
    made = Graphs(adapted_llama, [batch] * 9, Recorder())
    plain, *values = (gradients(adapted_llama, made.rank_loss(batch, 14))[0] for _ in range(9))
    assert len(set(values)) == 1
    assert values[0] == pytest.approx(plain, abs=1e-6)


def test_a_rank_without_texts_counts_for_nothing(adapted_llama: BaseModel) -> None:
    batch = texts([8])
    made = Graphs(adapted_llama, [batch] * 9, Recorder())
    for _ in range(3):
        value, grads = gradients(adapted_llama, made.rank_loss(batch, float("inf")))
        assert value == 0
        assert not any(grad.any() for grad in grads)


def test_few_uses_are_not_captured(adapted_llama: BaseModel) -> None:
    record = Recorder()
    batches = [texts([40]), texts([20]), texts([40])]
    made = Graphs(adapted_llama, batches, record)
    for batch in batches:
        gradients(adapted_llama, made.rank_loss(batch, 3))
    assert not record.captured


def test_what_cannot_be_captured_is_done_as_usual(adapted_llama: BaseModel) -> None:
    record = Recorder(usable=False)
    batch = texts([8, 5])
    made = Graphs(adapted_llama, [batch] * 20, record)
    expected, _ = gradients(adapted_llama, RankLoss(adapted_llama, collate(batch, adapted_llama), 11))
    for _ in range(20):
        assert gradients(adapted_llama, made.rank_loss(batch, 11))[0] == pytest.approx(expected, rel=1e-6)
    assert len(record.captured) == 1, "tried once"


def test_labels_that_are_added_lose_nothing(tiny_bases: dict[str, BaseModel]) -> None:
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
    with Trial(base, tiny_user, PLACED, LONGER, seed=5) as trial:
        expected = numbers(trial.run())
    record = Recorder()
    monkeypatch.setattr(graphs, "Pool", lambda _: record)
    monkeypatch.setattr("milp_ray.evaluation.decoding.Pool", lambda _: record)
    monkeypatch.setattr(base, "fused", True)
    with Trial(base, tiny_user, PLACED, LONGER, seed=5) as trial:
        found = numbers(trial.run())
    assert record.captured
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("uncollected")
def test_graphs_go_with_their_stage(adapted_llama: BaseModel) -> None:
    batch = texts([8, 5])
    made = Graphs(adapted_llama, [batch] * 20, Graph)
    for _ in range(3):
        gradients(adapted_llama, made.rank_loss(batch, 11))
    assert len(Graph.alive) == 1
    del made
    assert not Graph.alive
    made = Graphs(adapted_llama, [batch] * 20, Graph)
    for _ in range(3):
        loss = made.rank_loss(batch, 11)
        gradients(adapted_llama, loss)
    made.close()
    assert not Graph.alive, "though a loss is still about"


@pytest.mark.usefixtures("uncollected")
def test_nothing_of_a_trial_is_kept(
    base: BaseModel, tiny_user: UserSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs stay while their stage is under way, the adapter while the trial is."""
    monkeypatch.setattr(graphs, "Pool", lambda _: Graph)
    monkeypatch.setattr("milp_ray.evaluation.decoding.Pool", lambda _: Graph)
    monkeypatch.setattr(base, "fused", True)
    with Trial(base, tiny_user, PLACED, LONGER, seed=5) as trial:
        trial.run()  # makes what is made once
    before = tensors()
    with Trial(base, tiny_user, PLACED, LONGER, seed=5) as trial:
        most = dict.fromkeys(("inject", "instruct", "loss", "generate"), 0)
        for progress in trial.steps():
            if progress.step == 1 and progress.stage != "generate":
                assert not Graph.alive
            most[progress.stage] = max(most[progress.stage], len(Graph.alive))
        assert base.attached is not None
        layers = weakref.WeakSet(base.attached.layers.values())
    assert most["inject"] and most["instruct"] and most["generate"] and not most["loss"]
    assert not Graph.alive
    assert not layers
    assert tensors() <= before


@pytest.fixture
def replayed(tiny_bases: dict[str, BaseModel], monkeypatch: pytest.MonkeyPatch) -> BaseModel:
    """A base whose steps are captured, as far as a CPU can tell."""
    base = tiny_bases["llama"]
    monkeypatch.setattr(graphs, "Pool", lambda _: Graph)
    monkeypatch.setattr(base, "fused", True)
    return base


@pytest.mark.usefixtures("uncollected")
def test_graphs_go_when_a_trial_fails(
    replayed: BaseModel, tiny_user: UserSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the error is still about, and holds the frames that it came through."""
    steps = Trial(replayed, tiny_user, PLACED, LONGER, seed=5).steps()
    while not Graph.alive:
        next(steps)
    monkeypatch.setattr("milp_ray.training.loop._check_finite", _not_finite)
    with pytest.raises(TrialFailed, match="not finite") as error:
        next(steps)
    assert not Graph.alive
    assert error.tb


def _not_finite(*_: object) -> None:
    raise TrialFailed("not finite")


@pytest.mark.usefixtures("uncollected")
def test_nothing_of_a_trial_that_failed_is_kept(
    replayed: BaseModel, tiny_user: UserSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tensors()
    left: list[int] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: left.append(tensors()))
    trial = Trial(replayed, tiny_user, PLACED, LONGER, seed=5)
    with pytest.raises(TrialFailed, match="out of memory"):
        for progress in trial.steps():
            if progress.step == 4:
                assert Graph.alive
                monkeypatch.setattr(RankLoss, "backward", _no_room)
    assert left[-1] <= before
    assert not Graph.alive


def _no_room(loss: RankLoss) -> Tensor:
    loss()
    raise refused()


def test_a_capture_that_fails_takes_the_others_along(
    adapted_llama: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that is done as usual instead has their memory."""
    short, long = texts([8, 5]), texts([40, 5])
    made = Graphs(adapted_llama, [short, long] * 20, lambda work: None if Graph.alive else Graph(work))
    expected, _ = gradients(adapted_llama, RankLoss(adapted_llama, collate(long, adapted_llama), 43))
    for _ in range(3):
        gradients(adapted_llama, made.rank_loss(short, 11))
    assert len(Graph.alive) == 1
    usual, beside = RankLoss.backward, []

    def watched(loss: RankLoss) -> Tensor:
        beside.append(len(Graph.alive))
        return usual(loss)

    monkeypatch.setattr(RankLoss, "backward", watched)
    for batch in (long, long, short):
        value, _ = gradients(adapted_llama, made.rank_loss(batch, 43))
        if batch is long:
            assert value == pytest.approx(expected, rel=1e-5)
    assert beside == [0, 0, 0]


@pytest.mark.parametrize("graphs_too", [True, False])
def test_a_step_without_room_is_done_again_without_graphs(
    adapted_llama: BaseModel, monkeypatch: pytest.MonkeyPatch, graphs_too: bool
) -> None:
    often, rare = texts([8, 5]), texts([40, 5])
    attached = adapted_llama.attached
    assert attached is not None
    start = attached.state()

    def steps(made: Graphs | None) -> Iterator[list[float]]:
        with stepping(attached.parameters(), STUDY.optimizer, ALONE) as stepper:
            for batch in (often, often, often, rare, often):
                num_labels = sum(text.num_labels for text in batch)
                plain = RankLoss(adapted_llama, collate(batch, adapted_llama), num_labels)
                yield stepper.step(made.rank_loss(batch, num_labels) if made else plain, 1e-2).tolist()

    expected = list(steps(None))
    attached.load(start)
    running = steps(Graphs(adapted_llama, [often] * 20 + [rare], Graph if graphs_too else lambda _: None))
    found = [next(running) for _ in range(3)]
    assert bool(Graph.alive) is graphs_too
    usual, tries = RankLoss.backward, []

    def crowded(loss: RankLoss) -> Tensor:
        value = usual(loss)
        tries.append(len(Graph.alive))
        if len(tries) == 1:
            raise refused()  # with gradients half added
        return value

    monkeypatch.setattr(RankLoss, "backward", crowded)
    if graphs_too:
        found += running
        assert tries == [1, 0, 0], "nothing is captured any more"
        for numbers_of, other in zip(found, expected, strict=True):
            assert numbers_of == pytest.approx(other, rel=1e-4)
    else:
        with pytest.raises(torch.OutOfMemoryError):
            next(running)
        assert len(tries) == 1, "there was nothing to let go"


class Capturing:
    """Replaces torch.cuda.graph: the last of several errors comes when the capture is ended."""

    def __init__(self, errors: list[RuntimeError]) -> None:
        self._errors = errors

    def __enter__(self) -> None:
        torch.cuda.set_stream("of the capture")  # type: ignore[arg-type]

    def __exit__(self, *args: object) -> None:
        if len(self._errors) > 1:
            raise self._errors[-1]


@pytest.mark.parametrize(
    ("errors", "capturable"),
    [
        ([RuntimeError("operation not permitted when stream is capturing")], False),
        ([RuntimeError("not permitted"), RuntimeError("failed due to a previous error")], False),
        ([refused()], True),
        ([refused(), RuntimeError("failed due to a previous error")], True),
    ],
)
def test_a_failed_capture(
    tiny_models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    errors: list[RuntimeError],
    capturable: bool,
) -> None:
    """Torch is on its stream again, and the base not captured any more, unless memory was short."""
    base = load_base(ModelSettings(path=str(tiny_models["llama"]), device="cpu"))
    monkeypatch.setattr(base, "fused", True)
    assert isinstance(decoder(base, [[[5]]], 30), StaticCacheDecoder)
    streams = ["usual"]
    monkeypatch.setattr("torch.cuda.current_stream", lambda: streams[-1])
    monkeypatch.setattr("torch.cuda.set_stream", streams.append)
    monkeypatch.setattr("torch.cuda.CUDAGraph", object)
    monkeypatch.setattr("torch.cuda.graph", lambda *_, **__: Capturing(errors))

    def work() -> Tensor:
        raise errors[0]

    assert Pool(base)(work) is None
    assert streams == ["usual", "of the capture", "usual"]
    assert base.capturable is capturable
    assert isinstance(decoder(base, [[[5]]], 30), StaticCacheDecoder if capturable else DynamicCacheDecoder)


def test_a_base_that_cannot_be_captured_is_not(
    tiny_models: dict[str, Path], tiny_user: UserSplit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its rotations are chosen by the host, by the longest position, in every forward pass."""
    folder = shutil.copytree(tiny_models["llama"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert load_base(ModelSettings(path=str(folder), device="cpu")).capturable
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}), encoding="utf-8")
    base = load_base(ModelSettings(path=str(folder), device="cpu"))
    record = Recorder()
    monkeypatch.setattr(graphs, "Pool", lambda _: record)
    monkeypatch.setattr("milp_ray.evaluation.decoding.Pool", lambda _: record)
    monkeypatch.setattr(base, "fused", True)
    with Trial(base, tiny_user, PLACED, LONGER, seed=5) as trial:
        trial.run()
    assert not record.captured
