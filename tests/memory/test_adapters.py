"""Adapters on each architecture: exact modules, counts and restore, in PEFT's own files."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from milp_ray.errors import ModelError, SpaceError, StorageError
from milp_ray.memory.adapters import (
    attach,
    attach_saved,
    detach,
    lora_config,
    read_adapter,
    save_adapter,
)
from milp_ray.memory.architectures import architecture_names, architecture_of, register
from milp_ray.memory.placement import Placement
from milp_ray.memory.space import MemorySpace
from milp_ray.model.base import BaseModel, loaded

TINY_NAMES = ("llama", "gpt2", "roberta")
IDS = torch.arange(3, 40)[None]
UNEVEN = Placement.from_key("1:4,3:8,10:2,11:16")


def placements(count: int, layers: int = 12) -> list[Placement]:
    space = MemorySpace(layers, layers, (1, 2, 5), max_rank=32)
    rng = random.Random(7)
    return [space.placement(space.sample(rng)) for _ in range(count)]


def randomise(parameters: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


@pytest.mark.parametrize("name", TINY_NAMES)
def test_count_is_peft_s_for_random_placements(name: str, tiny_bases: dict[str, BaseModel]) -> None:
    base = tiny_bases[name]
    for placement in placements(12):
        attached = attach(base.model, lora_config(placement, base.architecture))
        trainable = sum(p.numel() for p in base.model.parameters() if p.requires_grad)
        detach(base.model, attached)
        assert trainable == base.architecture.trainable_params(placement)


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
def test_llama_likes_have_the_named_modules(kind: type) -> None:
    config = kind(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1,
        pad_token_id=None, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    architecture = architecture_of(config)
    for layer in range(2):
        for shape in architecture.modules(layer):
            module = model.get_submodule(shape.name)
            assert (module.in_features, module.out_features) == (shape.in_features, shape.out_features)


@pytest.mark.parametrize("name", TINY_NAMES)
def test_only_feed_forward_modules_of_the_named_layers(name: str, tiny_bases: dict[str, BaseModel]) -> None:
    """Layer 1 must not bring layer 11 or 10 along, nor attention's modules of similar names."""
    base = tiny_bases[name]
    attached = attach(base.model, lora_config(Placement.from_key("1:2"), base.architecture))
    found = {n for n, module in base.model.named_modules() if isinstance(module, LoraLayer)}
    detach(base.model, attached)
    assert found == {shape.name for shape in base.architecture.modules(1)}
    assert not [n for n in found if "attention" in n or ".attn." in n]


@pytest.mark.parametrize("name", TINY_NAMES)
def test_ranks_and_scaling_are_per_layer(name: str, tiny_bases: dict[str, BaseModel]) -> None:
    base = tiny_bases[name]
    attached = attach(base.model, lora_config(UNEVEN, base.architecture, scaling=0.5))
    detach(base.model, attached)
    ranks = {}
    for module_name, layer in attached.layers.items():
        number = re.search(r"\.(\d+)\.", module_name)
        assert number is not None
        ranks[int(number[1])] = layer.r["default"]
        assert layer.scaling["default"] == 0.5
        assert layer.lora_A["default"].weight.shape[0] == layer.r["default"]
    assert ranks == UNEVEN.as_dict()


@pytest.mark.parametrize("name", TINY_NAMES)
def test_detach_restores_the_very_same_modules(name: str, tiny_bases: dict[str, BaseModel]) -> None:
    model, architecture = tiny_bases[name].model, tiny_bases[name].architecture
    modules = {n: id(module) for n, module in model.named_modules()}
    tensors = {n: (id(p), p.clone()) for n, p in model.named_parameters()}
    attributes = set(vars(model))
    before = logits(model)
    for placement in placements(5):
        attached = attach(model, lora_config(placement, architecture))
        randomise(attached.parameters())
        assert not torch.equal(logits(model), before)
        detach(model, attached)
    assert {n: id(module) for n, module in model.named_modules()} == modules
    assert all(id(p) == tensors[n][0] and torch.equal(p, tensors[n][1]) for n, p in model.named_parameters())
    assert not any(p.requires_grad for p in model.parameters())
    assert set(vars(model)) == attributes
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", TINY_NAMES)
@pytest.mark.parametrize("key", ["3:8", "1:4,3:8,10:2,11:16", ",".join(f"{i}:{1 + i}" for i in range(12))])
def test_plain_peft_loads_what_is_saved(
    name: str, key: str, tiny_bases: dict[str, BaseModel], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases[name]
    attached = attach(base.model, lora_config(Placement.from_key(key), base.architecture, scaling=2.0))
    randomise(attached.parameters())
    expected = logits(base.model)
    save_adapter(attached, tmp_path / "mine", "models/the-base")
    detach(base.model, attached)

    more = {"is_decoder": True} if name == "roberta" else {}  # the released encoder is no decoder by itself
    plain = AutoModelForCausalLM.from_pretrained(tiny_models[name], **more)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "mine").eval()
    assert torch.equal(logits(theirs), expected)

    with loaded(base, tmp_path / "mine"):
        assert torch.equal(logits(base.model), expected)
    assert not torch.equal(logits(base.model), expected)


def test_saved_configuration(tiny_bases: dict[str, BaseModel], tmp_path: Path) -> None:
    base = tiny_bases["llama"]
    attached = attach(base.model, lora_config(Placement.from_key("0:2,11:4"), base.architecture))
    detach(base.model, attached)
    save_adapter(attached, tmp_path / "mine", "models/the-base", "abc")
    text = (tmp_path / "mine" / "adapter_config.json").read_text()
    values = json.loads(text)
    assert values["base_model_name_or_path"] == "models/the-base"
    assert values["revision"] == "abc"
    assert values["inference_mode"] is True
    assert values["rank_pattern"] == {s.name: 2 for s in base.architecture.modules(0)}
    assert values["alpha_pattern"] == values["rank_pattern"]
    assert sorted(values["target_modules"]) == sorted(
        shape.name for layer in (0, 11) for shape in base.architecture.modules(layer)
    )
    assert base.settings.path not in text
    assert str(tmp_path) not in text
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


# The fields of LoraConfig and its bases in PEFT 0.7.1, which refuses any other key.
PEFT_0_7_1 = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "megatron_config", "megatron_core", "modules_to_save", "peft_type", "r", "rank_pattern",
    "revision", "target_modules", "task_type",
}  # fmt: skip


@pytest.mark.parametrize("name", TINY_NAMES)
def test_the_configuration_holds_what_old_versions_of_peft_know(
    name: str, tiny_bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    base = tiny_bases[name]
    config = lora_config(Placement.from_key("0:2,11:4"), base.architecture, 1.5, 0.1)
    attached = attach(base.model, config)
    detach(base.model, attached)
    save_adapter(attached, tmp_path / "mine", "the-base")
    values = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    assert values.keys() <= PEFT_0_7_1
    # What readers other than PEFT need is there even where it is PEFT's default.
    assert {"peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path"} <= values.keys()
    again, _ = read_adapter(tmp_path / "mine")
    given = config.to_dict() | {"base_model_name_or_path": "the-base", "inference_mode": True}
    assert again.to_dict() == given, "a default that was left out is another one"


def test_a_memory_finds_its_base_where_it_was_trained(
    tiny_bases: dict[str, BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_bases["llama"]
    attached = attach(base.model, lora_config(UNEVEN, base.architecture))
    randomise(attached.parameters())
    expected = logits(base.model)
    save_adapter(attached, tmp_path / "mine", base.settings.path)
    detach(base.model, attached)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits(peft.AutoPeftModelForCausalLM.from_pretrained("mine").eval()), expected)


def test_saving_again_replaces_and_leaves_nothing_else(
    tiny_bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    base = tiny_bases["llama"]
    for key in ("0:2", "5:3"):
        attached = attach(base.model, lora_config(Placement.from_key(key), base.architecture))
        detach(base.model, attached)
        save_adapter(attached, tmp_path / "mine", "b")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert all(".5." in name for name in load_file(tmp_path / "mine" / "adapter_model.safetensors"))


def test_a_full_disk_leaves_nothing(
    tiny_bases: dict[str, BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_bases["llama"]
    attached = attach(base.model, lora_config(Placement.from_key("0:2"), base.architecture))
    detach(base.model, attached)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        save_adapter(attached, tmp_path / "mine", "b")
    assert list(tmp_path.iterdir()) == []


def test_empty_and_unknown_placements_raise(tiny_bases: dict[str, BaseModel]) -> None:
    """What PEFT does silently: an empty list adapts every layer, an index out of range none."""
    architecture = tiny_bases["llama"].architecture
    for key in ("", "12:8", "3:8,99:8", "3:33"):
        with pytest.raises(SpaceError):
            lora_config(Placement.from_key(key), architecture)
    with pytest.raises(SpaceError):
        architecture.trainable_params(Placement.from_key("12:8"))


def test_other_modules_than_asked_for_raise_and_leave_nothing(
    tiny_bases: dict[str, BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_bases["llama"]
    config = lora_config(Placement.from_key("3:8"), base.architecture)
    modules = {n: id(module) for n, module in base.model.named_modules()}

    def too_much(changed: peft.LoraConfig, model: nn.Module, **more: str) -> nn.Module:
        changed.target_modules = {"down_proj", "q_proj"}  # a shortening gone wrong
        return peft.inject_adapter_in_model(changed, model, **more)

    monkeypatch.setattr("milp_ray.memory.adapters.inject_adapter_in_model", too_much)
    with pytest.raises(SpaceError, match="exactly"):
        attach(base.model, config)
    config.target_modules = {"down_proj"}
    with pytest.raises(SpaceError, match="no module"):
        attach(base.model, config)
    assert {n: id(module) for n, module in base.model.named_modules()} == modules


def test_a_mixture_of_experts_is_given_back_as_it_was() -> None:
    """PEFT takes exact names of such a model for all layers' experts, and wraps them twice."""
    model = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
            intermediate_size=48, moe_intermediate_size=24, n_routed_experts=4, num_experts_per_tok=2,
            n_group=2, topk_group=1, first_k_dense_replace=1, n_shared_experts=1, q_lora_rank=16,
            kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        )
    ).eval()  # fmt: skip
    frozen = model.get_input_embeddings().weight.requires_grad_(False)
    before = {
        name: id(part) for named in (model.named_modules, model.named_parameters) for name, part in named()
    }
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    expected = logits(model)
    names = [f"model.layers.0.mlp.{part}" for part in ("gate_proj", "up_proj", "down_proj")]
    for _ in range(2):
        with pytest.raises(SpaceError, match="exactly"):
            attach(model, peft.LoraConfig(r=4, target_modules=names, task_type="CAUSAL_LM"))
        after = {
            name: id(part)
            for named in (model.named_modules, model.named_parameters)
            for name, part in named()
        }
        assert list(after.items()) == list(before.items())
        assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable
        assert not frozen.requires_grad and "peft_config" not in vars(model)
        assert torch.equal(logits(model), expected)
    attached = attach(model, peft.LoraConfig(r=4, target_modules=["model.layers.0.self_attn.o_proj"]))
    detach(model, attached)


def test_one_adapter_at_a_time(tiny_bases: dict[str, BaseModel]) -> None:
    base = tiny_bases["llama"]
    config = lora_config(Placement.from_key("3:8"), base.architecture)
    attached = attach(base.model, config)
    with pytest.raises(RuntimeError, match="detach"):
        attach(base.model, config)
    detach(base.model, attached)


@pytest.mark.parametrize(
    "damage", ["no config", "no weights", "cut", "other model", "other shape", "extra", "not lora"]
)
def test_damaged_adapters_are_refused(damage: str, tiny_bases: dict[str, BaseModel], tmp_path: Path) -> None:
    base = tiny_bases["gpt2"]
    attached = attach(base.model, lora_config(Placement.from_key("3:8"), base.architecture))
    detach(base.model, attached)
    folder = tmp_path / "mine"
    save_adapter(attached, folder, "b")
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = next(iter(tensors))
    if damage == "no config":
        config.unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "other shape":
        tensors[first] = torch.zeros(3, 3)
        save_file(tensors, weights)
    elif damage == "extra":
        tensors[first + ".more"] = torch.zeros(3, 3)
        save_file(tensors, weights)
    elif damage == "not lora":
        config.write_text(config.read_text().replace("LORA", "IA3"))
    other = tiny_bases["llama"] if damage == "other model" else base
    with pytest.raises(StorageError):
        attach_saved(other.model, folder)
    assert not any(isinstance(module, LoraLayer) for module in other.model.modules())


def test_unsupported_architecture_says_how_to_add_it() -> None:
    class Config:
        model_type = "bloom"

    with pytest.raises(ModelError, match=r"architectures\.py") as caught:
        architecture_of(Config())
    assert all(name in str(caught.value) for name in architecture_names())
    Config.model_type = "llama"
    with pytest.raises(ModelError, match="incomplete"):
        architecture_of(Config())


def test_registry_refuses_duplicates() -> None:
    with pytest.raises(ValueError, match="already"):
        register("gpt2")(architecture_of)
