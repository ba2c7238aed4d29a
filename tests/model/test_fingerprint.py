"""Which base it is: told by its files or its commit, without reading all weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from milp_ray.config.models import ModelSettings
from milp_ray.errors import ModelError
from milp_ray.model import fingerprint
from milp_ray.model.fingerprint import base_fingerprint, check_base


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "README.md", "trainer_state.json"):
        (folder / name).write_text(name)
    (folder / "model.safetensors").write_bytes(os.urandom(5 * 2**20))
    return folder


def of(folder: Path) -> dict[str, str]:
    return base_fingerprint(ModelSettings(path=str(folder)))


def retrained(folder: Path) -> None:
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(os.urandom(size))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (retrained, "model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"1"), "model.safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "model-00001.safetensors"), "model-00001"),
        (lambda f: (f / "config.json").write_text("{}"), "config.json"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    ],
    ids=["retrained", "other size", "other name", "config", "tokenizer"],
)
def test_another_base_is_refused(model: Path, change: Callable[[Path], object], told: str) -> None:
    before = of(model)
    change(model)
    with pytest.raises(ModelError, match=told) as caught:
        check_base(before, of(model))
    assert "another study name" in str(caught.value)


def test_what_is_not_of_the_model_may_change(model: Path) -> None:
    before = of(model)
    (model / "README.md").write_text("other words")
    (model / "eval_results.json").write_text("{}")
    os.utime(model / "model.safetensors", (0, 0))
    check_base(before, of(model))
    assert before.keys() == {"config.json", "tokenizer.json", "model.safetensors"}


def test_a_run_of_before_says_nothing_of_its_base(model: Path) -> None:
    check_base({}, of(model))
    check_base(of(model), {})


def test_large_weights_are_sampled_to_their_end(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_BLOCKS", 8)
    weights = model / "model.safetensors"
    before = of(model)
    with weights.open("r+b") as file:  # the last eighth, as of the last layers
        file.seek(weights.stat().st_size * 7 // 8)
        file.write(os.urandom(2**19))
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        check_base(before, of(model))


def test_a_hub_model_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--me--tiny"
    (cache / "refs").mkdir(parents=True)
    found = []
    for commit in ("1" * 40, "2" * 40):
        (cache / "snapshots" / commit).mkdir(parents=True)
        (cache / "snapshots" / commit / "config.json").write_text("{}")
        (cache / "refs" / "main").write_text(commit)
        found.append(base_fingerprint(ModelSettings(path="me/tiny")))
    assert found == [{"commit": "1" * 40}, {"commit": "2" * 40}]
    pinned = ModelSettings(path="me/tiny", revision="1" * 40)
    assert base_fingerprint(pinned) == found[0], "pinned, it does not move"
    with pytest.raises(ModelError, match=r"changed since the run began \(commit\)"):
        check_base(*found)
    assert base_fingerprint(ModelSettings(path="me/absent")) == {}


def test_a_file_that_cannot_be_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(fingerprint, "_digest", refused)
    with pytest.raises(ModelError, match="Permission denied"):
        of(model)
