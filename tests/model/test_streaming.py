"""A sharded base is read while it is sharded: the same base, and no host holds all of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from pytest import MonkeyPatch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config, Qwen3Config

from milp_ray.config.models import ModelSettings
from milp_ray.errors import ModelError
from milp_ray.model import base as loading
from milp_ray.model.base import load_base
from milp_ray.model.parallel import sharding
from milp_ray.model.parallel.group import Group
from milp_ray.model.parallel.sharding import Parallel, local_numel
from milp_ray.model.pretrained import load_config
from milp_ray.model.streaming import Weights, can_stream, locate_weights
from milp_ray.model.weights import from_pretrained
from tests.trial.ranks import on_ranks

STRATEGIES = ("zero3", "fsdp")
NAMES = ("llama", "gpt2", "roberta", "mistral", "qwen2", "qwen3", "shards", "both", "inner")
CASES = [(strategy, name, "float32") for strategy in STRATEGIES for name in NAMES]
CASES += [(strategy, name, "bfloat16") for strategy in STRATEGIES for name in ("llama", "qwen2", "both")]
WEIGHTS = "model.safetensors"


def settings(path: Path | str, dtype: str = "float32", **more: Any) -> ModelSettings:
    return ModelSettings(path=str(path), device="cpu", dtype=dtype, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def models(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every architecture, and plain files of other kinds: ``shards``; ``both`` of two tied weights;
    those of the ``inner`` model alone."""
    root = tmp_path_factory.mktemp("streamed")
    folders = dict(tiny_models)

    def keep(name: str, like: str, model: Any, **how: Any) -> None:
        folders[name] = Path(shutil.copytree(tiny_models[like], root / name))
        (folders[name] / WEIGHTS).unlink()
        model.save_pretrained(folders[name], **how)

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
             "max_position_embeddings": 128, "vocab_size": 321, "eos_token_id": 2, "initializer_range": 0.2,
             "num_key_value_heads": 1}  # fmt: skip
    for config in (MistralConfig(**sizes), Qwen2Config(**sizes, tie_word_embeddings=True)):
        keep(config.model_type, "llama", AutoModelForCausalLM.from_config(config))
    keep("qwen3", "llama", AutoModelForCausalLM.from_config(Qwen3Config(**sizes, head_dim=16)))
    llama = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
    keep("shards", "llama", llama, max_shard_size="100KB")
    gpt2 = AutoModelForCausalLM.from_pretrained(tiny_models["gpt2"])
    keep("inner", "gpt2", gpt2.transformer)
    # What the inner model's own configuration would not say.
    shutil.copy(tiny_models["gpt2"] / "config.json", folders["inner"])
    keep("both", "gpt2", gpt2)
    tensors = load_file(folders["both"] / WEIGHTS)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, folders["both"] / WEIGHTS, metadata={"format": "pt"})
    return folders


def on_host(model: nn.Module) -> int:
    """Bytes of a model's parameters that lie on this rank."""
    found: dict[int, int] = {}
    for parameter in model.parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        for tensor in (local, getattr(parameter, "ds_tensor", None)):
            if tensor is not None and not tensor.is_meta and tensor.numel():
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


class Watch:
    """The most that a rank holds when something is read, sharded or sent while a base is loaded."""

    def __init__(self, patch: MonkeyPatch) -> None:
        self.peak = self.read = 0
        self._root: nn.Module | None = None
        patch.setattr(sharding.Root, "__init__", self._begins(sharding.Root.__init__))
        patch.setattr(Weights, "read", self._reads(Weights.read))
        patch.setattr("torch.distributed.broadcast", self._seen(torch.distributed.broadcast))
        patch.setattr("torch.distributed.fsdp.fully_shard", self._seen(torch.distributed.fsdp.fully_shard))

    def _look(self, more: int = 0) -> None:
        if self._root is not None:
            self.peak = max(self.peak, on_host(self._root) + more)

    def _begins(self, made: Callable[..., None]) -> Callable[..., None]:
        def init(root: nn.Module, model: nn.Module) -> None:
            made(root, model)
            self._root = root
            self._look()

        return init

    def _reads(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def reads(*arguments: Any) -> Any:
            values = read(*arguments)
            self.read += values.nbytes
            self._look(values.untyped_storage().nbytes())
            return values

        return reads

    def _seen(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def seen(*arguments: Any, **more: Any) -> Any:
            self._look()
            result = work(*arguments, **more)
            self._look()
            return result

        return seen


def whole(parameter: Any) -> torch.Tensor:
    """All of a divided parameter."""
    if hasattr(parameter, "full_tensor"):
        result: torch.Tensor = parameter.full_tensor()
        return result
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.data.clone()  # type: ignore[no-any-return]


def loaded(group: Group, strategy: str, given: ModelSettings, stream: bool) -> dict[str, Any]:
    """This rank's part of a base, read while it is sharded or before, and its logits."""
    with MonkeyPatch.context() as patch:
        if not stream:
            patch.setattr(loading, "can_stream", lambda *_: False)
        watch = Watch(patch)
        base = load_base(given, Parallel(group, strategy))  # type: ignore[arg-type]
    names: dict[int, list[str]] = {}
    for name, parameter in base.model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    model: Any = base.model
    result = {
        "peak": watch.peak,
        "read": watch.read,
        "held": local_numel(model),
        "tied": sorted(names.values()),
        "frozen": not any(parameter.requires_grad for parameter in model.parameters()),
        "parameters": {name: whole(parameter) for name, parameter in model.named_parameters()},
        "buffers": dict(model.named_buffers()),
        "config": model.config.to_dict() | {"attention": model.config._attn_implementation},
        "generation": model.generation_config.to_dict() if model.generation_config else None,
        "stop": base.stop_ids,
        "training": any(module.training for module in model.modules()),
    }
    with torch.no_grad():
        result["logits"] = base.root(lambda hidden: hidden, input_ids=torch.arange(3, 40)[None]).clone()
    return result


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def compared(group: Group, models: dict[str, Path], cases: list[tuple[str, str, str]]) -> dict[str, Any]:
    """Of each way and model: where the two differ, and what lay on this rank."""
    found: dict[str, Any] = {}
    for strategy, name, dtype in cases:
        now = loaded(group, strategy, settings(models[name], dtype), stream=True)
        before = loaded(group, strategy, settings(models[name], dtype), stream=False)
        differ = [key for key in now.keys() - {"peak", "read"} if not same(now[key], before[key])]
        row = {"differ": differ, "before": before["peak"]}
        row |= {key: now[key] for key in ("peak", "read", "held", "frozen")}
        row["size"] = sum(values.nbytes for values in now["parameters"].values())
        found[f"{strategy} {name} {dtype}"] = row
    return found


@pytest.fixture(scope="module")
def both(models: dict[str, Path]) -> list[dict[str, Any]]:
    """What two ranks found, of every way, model and number format."""
    found: list[dict[str, Any]] = on_ranks(compared, models, CASES)
    return found


@pytest.mark.parametrize(("strategy", "name", "dtype"), CASES)
def test_it_is_the_same_base(both: list[dict[str, Any]], strategy: str, name: str, dtype: str) -> None:
    rows = [rank[f"{strategy} {name} {dtype}"] for rank in both]
    assert [row["differ"] for row in rows] == [[], []]
    assert all(row["frozen"] for row in rows)
    assert sum(row["read"] for row in rows), "it was read whole"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_rank_holds_the_whole_base_on_its_host(both: list[dict[str, Any]], strategy: str) -> None:
    """Twelve layers; the fp32 of the file is what is read, and what is kept."""
    for rank in both:
        row = rank[f"{strategy} llama float32"]
        assert row["before"] >= row["size"], "the measure does not see a whole base"
        # Beside its shard one layer or embedding (a twelfth of it each), and the tensor being read.
        assert row["peak"] <= 4 * row["held"] + row["size"] / 6
        assert row["peak"] < 0.7 * row["size"]


def test_rows_that_are_fewer_than_ranks(models: dict[str, Path]) -> None:
    """RoBERTa here has two kinds of tokens, Qwen 321 tokens."""
    cases = [("fsdp", name, "float32") for name in ("roberta", "qwen2")]
    rows = [row for rank in on_ranks(compared, models, cases, size=3) for row in rank.values()]
    assert len(rows) == 6 and not any(row["differ"] for row in rows)


def test_what_is_read(both: list[dict[str, Any]]) -> None:
    """With fsdp each rank reads its own rows; with zero3 rank 0 reads everything, once."""
    first, second = (rank["fsdp llama float32"] for rank in both)
    assert first["read"] + second["read"] == first["size"]
    first, second = (rank["zero3 llama float32"] for rank in both)
    assert (first["read"], second["read"]) == (first["size"], 0)


def refused(group: Group, folders: list[Path], whole: Path) -> list[str]:
    """The errors of each strategy for weights that cannot be read: damaged ones, and those that
    rank 0 loses half way."""
    said = []
    for strategy in STRATEGIES:
        for folder in [*folders, whole]:
            with MonkeyPatch.context() as patch:
                if folder == whole and group.rank == 0:
                    patch.setattr(Weights, "read", fails_at("model.layers.7.mlp.up_proj.weight"))
                with pytest.raises(ModelError) as caught:
                    load_base(settings(folder), Parallel(group, strategy))  # type: ignore[arg-type]
            said.append(str(caught.value))
    return said


def fails_at(wanted: str) -> Callable[..., Any]:
    """A ``read`` that finds one tensor's file gone."""
    read = Weights.read

    def reads(weights: Weights, name: str, *rows: Any) -> Any:
        if name == wanted:
            weights = Weights(weights.path, {name: (Path(weights.path) / "gone", name)})
        return read(weights, name, *rows)

    return reads


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def of_another_shape(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 64}))


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])


def gone(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def test_all_ranks_say_what_one_alone_says_of_damaged_weights(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    folders, expected = [], []
    for damage in (without_a_tensor, of_another_shape, cut, gone):
        folders.append(Path(shutil.copytree(tiny_models["llama"], tmp_path / damage.__name__)))
        damage(folders[-1])
        with pytest.raises(ModelError) as caught:
            load_base(settings(folders[-1]))
        expected.append(str(caught.value))
    first, second = on_ranks(refused, folders, tiny_models["llama"])
    assert first == second
    of_way, count = [first[:5], first[5:]], len(expected)
    assert [said[:count] for said in of_way] == [expected] * 2
    assert all("cannot be loaded (FileNotFoundError at " in said[count] for said in of_way)


def meta(given: ModelSettings) -> Any:
    return from_pretrained(given, load_config(given), torch.float32, device_map="meta")


def pickled(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    gone(folder)
    torch.save(tensors, folder / "pytorch_model.bin")


def renamed(folder: Path) -> None:
    """As the first releases of RoBERTa and BERT call them."""
    tensors = load_file(folder / WEIGHTS)
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): values for name, values in tensors.items()}
    assert old.keys() != tensors.keys()
    save_file(old, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("other", [pickled, renamed])
def test_other_files_are_read_whole(
    other: Callable[[Path], None], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_models["roberta"], tmp_path / "model"))
    other(folder)
    given = settings(folder)
    assert locate_weights(meta(given), given) is None
    config = load_config(given)
    model, weights = loading._load_model(given, config, torch.float32, sharded=True)
    assert weights is None
    expected = load_base(settings(tiny_models["roberta"])).model.state_dict()
    assert all(torch.equal(values, expected[name]) for name, values in model.state_dict().items())


def test_what_only_remote_code_or_a_quantiser_can_load_is_read_whole(tiny_models: dict[str, Path]) -> None:
    given = settings(tiny_models["llama"])
    config = load_config(given)
    assert can_stream(given, config)
    assert not can_stream(given.model_copy(update={"trust_remote_code": True}), config)
    config.quantization_config = {"quant_method": "gptq"}
    assert not can_stream(given, config)


def test_a_base_that_is_not_divided_is_loaded_as_ever(tiny_models: dict[str, Path]) -> None:
    given = settings(tiny_models["llama"])
    model, weights = loading._load_model(given, load_config(given), torch.float32, sharded=False)
    assert weights is None and not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama", "shards"])
def test_a_hub_model_is_read_from_the_cache(
    name: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "c" * 40
    cache = tmp_path / "models--me--tiny"
    shutil.copytree(models[name], cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for given in (settings("me/tiny"), settings("me/tiny", revision=commit)):
        model, weights = loading._load_model(given, load_config(given), torch.float32, sharded=True)
        assert weights is not None
        expected = load_base(settings(models[name])).model.state_dict()
        assert weights.tensor_files.keys() == model.state_dict().keys()
        assert all(torch.equal(weights.read(key), values) for key, values in expected.items())
