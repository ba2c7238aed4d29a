"""Loading a base: its result, and one clear error for each fault that a model folder can have."""

from __future__ import annotations

import errno
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from milp_ray.config.models import ModelSettings
from milp_ray.errors import ClusterError, MilpRayError, ModelError, StorageError
from milp_ray.model.base import BaseModel, load_base
from milp_ray.model.pretrained import load_architecture


def settings(path: Path | str, **more: object) -> ModelSettings:
    return ModelSettings(path=str(path), device="cpu", **more)  # type: ignore[arg-type]


@pytest.fixture
def model(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny Llama to do damage to."""
    return Path(shutil.copytree(tiny_models["llama"], tmp_path / "model"))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", ["llama", "gpt2", "roberta"])
def test_base_is_frozen_and_described(
    name: str, tiny_bases: dict[str, BaseModel], tiny_models: dict[str, Path]
) -> None:
    base = tiny_bases[name]
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not any(module.training for module in base.model.modules())
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.float32}
    assert load_architecture(settings(tiny_models[name])) == base.architecture
    assert (base.architecture.num_layers, base.architecture.width) == (12, 32)
    assert base.architecture.context == 128
    assert base.stop_ids == {base.eos_id}


@pytest.mark.parametrize("name", ["llama", "gpt2", "roberta"])
def test_no_token_sees_the_future(name: str, tiny_bases: dict[str, BaseModel]) -> None:
    """RoBERTa as released looks both ways: as a base it must not."""
    model = tiny_bases[name].model
    one, two = torch.arange(3, 20)[None], torch.arange(3, 20)[None].clone()
    two[0, -1] = 200
    with torch.no_grad():
        assert torch.allclose(model(one).logits[:, :-1], model(two).logits[:, :-1], atol=1e-6)


def test_number_formats(model: Path) -> None:
    base = load_base(settings(model, dtype="bfloat16"))
    assert base.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["llama", "gpt2", "roberta"])
def test_nothing_is_printed(
    name: str, tiny_models: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    load_base(settings(tiny_models[name]))
    assert capfd.readouterr() == ("", "")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def wrong_value(folder: Path) -> None:
    edit(folder / "config.json", hidden_size="wide")


def unsupported(folder: Path) -> None:
    edit(folder / "config.json", model_type="bloom")


def unknown(folder: Path) -> None:
    edit(folder / "config.json", model_type="zork")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def lacking_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def other_weights(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=64)


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def no_end(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token=None)


def large_tokenizer(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    values["added_tokens"] += [
        {"id": 400 + i, "content": f"<x{i}>", "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False} for i in range(40)
    ]  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (no_config, "has no config.json"),
        (broken_config, "configuration"),
        (wrong_value, "configuration"),
        (unsupported, "'bloom' is not supported"),
        (unknown, "'zork' is not supported"),
        (no_weights, "weights"),
        (cut_weights, "weights"),
        (lacking_weights, "up_proj"),
        (other_weights, "weights"),
        (no_tokenizer, "tokenizer"),
        (no_end, "end-of-text"),
        (large_tokenizer, "embedding"),
    ],
)
def test_damaged_models(damage: object, says: str, model: Path) -> None:
    damage(model)  # type: ignore[operator]
    with pytest.raises(ModelError, match=says) as caught:
        load_base(settings(model))
    (problem,) = caught.value.problems
    assert problem.where == "model.path"
    assert problem.remedy


def test_a_wrong_path_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after half a minute of looking for a model of that name on the hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "file").write_text("x")
    start = time.monotonic()
    for path in (tmp_path / "none", "./none", "../none", "models/none", "a/b/c", "file", "no such"):
        with pytest.raises(ModelError, match=r"does not exist|is a file"):
            load_architecture(settings(path))
    assert time.monotonic() - start < 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(model: Path) -> None:
    with pytest.raises(MilpRayError, match="no GPU"):
        load_base(ModelSettings(path=str(model), device="cuda"))


REFUSED = RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("reader", ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"])
@pytest.mark.parametrize(
    ("error", "kind", "code", "says"),
    [
        (OSError(errno.EIO, "Input/output error"), StorageError, 1, "Input/output error"),
        (OSError(errno.ESTALE, "Stale file handle"), StorageError, 1, "Stale file handle"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ClusterError, 1, "no memory"),
        (MemoryError(), ClusterError, 1, "no memory"),
        (REFUSED, ClusterError, 1, "no memory"),
        (PermissionError(errno.EACCES, "Permission denied"), ModelError, 2, "PermissionError"),
        (OSError("it does not appear to have a file named model.safetensors"), ModelError, 2, "OSError"),
    ],
)
def test_what_may_pass_is_not_blamed_on_the_model(
    reader: str,
    error: Exception,
    kind: type[MilpRayError],
    code: int,
    says: str,
    tiny_models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"transformers.{reader}.from_pretrained", fails)
    with pytest.raises(kind, match=says) as caught:
        load_base(settings(tiny_models["llama"]))
    assert caught.value.exit_code == code and caught.value.problems[0].where == "model.path"


@pytest.mark.parametrize(
    ("error", "device", "total", "kind", "says"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "cuda",
            8 << 30,
            ClusterError,
            "0.50 of the GPU's 8.00",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "cuda",
            1,
            ModelError,
            "more than the 0.00 GiB of a GPU",
        ),
        (REFUSED, "cpu", 0, ClusterError, "so much memory is not left"),
        (RuntimeError("a bug"), "cpu", 0, RuntimeError, "a bug"),
    ],
)
def test_a_device_without_room_says_what_there_is(
    error: Exception,
    device: str,
    total: int,
    kind: type[Exception],
    says: str,
    tiny_models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("milp_ray.model.parallel.sharding.Root.to", full)
    monkeypatch.setattr("milp_ray.model.base.device_of", lambda _: torch.device(device))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (1 << 29, total))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _: 0)
    with pytest.raises(kind, match=says):
        load_base(settings(tiny_models["llama"]))
