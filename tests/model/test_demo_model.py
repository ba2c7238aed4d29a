"""The demo's base model, at a size that trains in a second or two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from milp_ray.config.models import ModelSettings
from milp_ray.data.personas import generate_personas
from milp_ray.errors import StorageError
from milp_ray.model import demo_model
from milp_ray.model.base import load_base
from milp_ray.model.demo_model import (
    FIRST_BACKGROUND,
    DemoModelSizes,
    background_texts,
    build_demo_model,
)

TINY = DemoModelSizes(
    layers=4,
    hidden=32,
    feed_forward=48,
    heads=2,
    context=128,
    vocabulary=600,
    personas=6,
    steps=30,
    batch=4,
    block=64,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    losses: list[float] = []
    folder = tmp_path_factory.mktemp("cache")
    path = build_demo_model(folder, 0, 1, sizes=TINY, progress=lambda step, steps, loss: losses.append(loss))
    return path, losses


def test_it_learns(built: tuple[Path, list[float]]) -> None:
    _, losses = built
    assert len(losses) == TINY.steps
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_it_loads_as_a_base_model(built: tuple[Path, list[float]]) -> None:
    path, _ = built
    base = load_base(ModelSettings(path=str(path), device="cpu"))
    assert base.architecture.model_type == "llama"
    assert base.architecture.num_layers == 4
    assert base.architecture.width == 32
    assert base.dtype == torch.float32
    tokenizer = base.tokenizer
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<s>", "</s>")
    assert len(tokenizer) <= TINY.vocabulary
    text = "Žluťoučký 🐎 <s> of a persona,  twice\n"
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert not {0, 1, 2} & set(ids)


def test_a_second_call_trains_nothing(built: tuple[Path, list[float]]) -> None:
    path, _ = built
    weights = path / "model.safetensors"
    before = weights.stat().st_mtime_ns

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    assert build_demo_model(path.parent, 0, 1, sizes=TINY, progress=refuse) == path
    assert weights.stat().st_mtime_ns == before


def test_the_same_again_and_another_of_another_seed(
    built: tuple[Path, list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = built
    torch.manual_seed(123)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    again = build_demo_model(tmp_path, 0, 1, sizes=TINY)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert again.name == path.name
    assert (again / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()
    assert (again / "tokenizer.json").read_bytes() == (path / "tokenizer.json").read_bytes()
    short = replace(TINY, steps=2)
    other = build_demo_model(tmp_path, 1, 1, sizes=short)
    assert other.name not in (path.name, build_demo_model(tmp_path, 0, 1, sizes=short).name)
    monkeypatch.setattr(demo_model, "ADDRESSES", ("Psst, ",))
    assert build_demo_model(tmp_path, 1, 1, sizes=short).name != other.name


def test_nothing_half_made_after_an_interruption(tmp_path: Path) -> None:
    def interrupt(step: int, steps: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_demo_model(tmp_path, 0, 1, sizes=TINY, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        build_demo_model(tmp_path / "file", 0, 1, sizes=replace(TINY, steps=1))


def test_no_demo_user_is_trained_on() -> None:
    texts = set(background_texts(4, 0))
    assert len(texts) > 4 * 160
    for user in generate_personas(3, 0):
        for sample in user.samples:
            assert f"User: {sample.query}\nResponse: {sample.response}" not in texts
    stranger = generate_personas(1, 0, first=FIRST_BACKGROUND)[0]
    assert f"History: {stranger.history[0]}" in texts
