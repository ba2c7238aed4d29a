"""Memories for other machines and readers: the same function, one rank, no path of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from milp_ray.errors import SpaceError, StorageError
from milp_ray.memory.adapter_files import read_files
from milp_ray.memory.adapters import attach, detach, lora_config, save_adapter
from milp_ray.memory.export import copy_adapter, portable_name, with_one_rank
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel

IDS = torch.arange(3, 40)[None]
UNEVEN = Placement.from_key("1:4,3:8,10:2,11:16")


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def saved(base: BaseModel, folder: Path, scaling: float = 1.0) -> torch.Tensor:
    """The logits of a memory with four ranks, after it was saved to ``folder``."""
    attached = attach(base.model, lora_config(UNEVEN, base.architecture, scaling))
    generator = torch.Generator().manual_seed(1)
    for matrix in attached.parameters():
        matrix.data.copy_(0.2 * torch.randn(matrix.shape, generator=generator))
    found = logits(base.model)
    save_adapter(attached, folder, base.settings.path)
    detach(base.model, attached)
    return found


def as_read_with_one_alpha(model: nn.Module, config: dict[str, float]) -> nn.Module:
    """As tools read it that take a file's one alpha, and the rank from each matrix."""
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.scaling["default"] = config["lora_alpha"] / module.lora_A["default"].weight.shape[0]
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2", "roberta"])
@pytest.mark.parametrize("scaling", [1.0, 0.5])
def test_one_rank_is_the_same_function_to_every_reader(
    name: str, scaling: float, tiny_bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    base = tiny_bases[name]
    expected = saved(base, tmp_path / "mine", scaling)
    (tmp_path / "one").mkdir()
    copy_adapter(tmp_path / "mine", tmp_path / "one", one_rank=True)
    values = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert (values["r"], values["lora_alpha"]) == (16, 16 * scaling)
    assert not {"rank_pattern", "alpha_pattern"} & values.keys()
    for key, tensor in load_file(tmp_path / "one" / "adapter_model.safetensors").items():
        assert tensor.shape[0 if "lora_A" in key else 1] == 16
    differ = {}
    for folder in ("mine", "one"):
        config = json.loads((tmp_path / folder / "adapter_config.json").read_text())
        plain = AutoModelForCausalLM.from_pretrained(
            base.settings.path, **({"is_decoder": True} if name == "roberta" else {})
        )
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / folder).eval()
        torch.testing.assert_close(logits(theirs), expected, rtol=1e-4, atol=1e-4)
        simple = as_read_with_one_alpha(theirs, config)
        differ[folder] = float((logits(simple) - expected).abs().max())
    assert differ["one"] < 1e-4 < 1e-2 < differ["mine"], "with patterns such a reader is wrong"


def test_one_rank_may_be_larger_and_not_smaller(tiny_bases: dict[str, BaseModel], tmp_path: Path) -> None:
    saved(tiny_bases["llama"], tmp_path / "mine")
    config, tensors = read_files(tmp_path / "mine")
    wide, filled = with_one_rank(config, tensors, 32)
    assert (wide["r"], wide["lora_alpha"], config["r"]) == (32, 32, 16)
    assert all(tensor.shape[0 if "lora_A" in key else 1] == 32 for key, tensor in filled.items())
    with pytest.raises(SpaceError, match="rank 8 is below a layer's, 16"):
        with_one_rank(config, tensors, 8)
    config["alpha_pattern"] = dict.fromkeys(config["alpha_pattern"], 5)
    with pytest.raises(SpaceError, match="alpha / rank differ"):
        with_one_rank(config, tensors)


def test_a_copy_names_no_folder_of_this_machine(tiny_bases: dict[str, BaseModel], tmp_path: Path) -> None:
    base = tiny_bases["llama"]
    expected = saved(base, tmp_path / "mine")
    (tmp_path / "copy").mkdir()
    copy_adapter(tmp_path / "mine", tmp_path / "copy")
    text = (tmp_path / "copy" / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == "llama"
    assert base.settings.path not in text and "/" not in text.replace("\\/", "")
    plain = AutoModelForCausalLM.from_pretrained(base.settings.path)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(plain, tmp_path / "copy").eval()), expected)
    (tmp_path / "mine" / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(StorageError, match="could not be read"):
        copy_adapter(tmp_path / "mine", tmp_path / "copy")


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("/data/models/Llama-3-8B", "Llama-3-8B"),
        ("./models/mine/", "mine"),
        ("~/mine", "mine"),
        ("meta-llama/Llama-3-8B", "meta-llama/Llama-3-8B"),
        ("gpt2", "gpt2"),
    ],
)
def test_the_name_of_a_base_elsewhere(base: str, name: str) -> None:
    assert portable_name(base) == name
