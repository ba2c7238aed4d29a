"""Whole models: the memory is in the weights, and the base gets its own back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from milp_ray.errors import RunFolderError, StudyError
from milp_ray.memory.adapters import attach, detach, lora_config, save_adapter
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel
from milp_ray.model.row_adapters import load_lora
from milp_ray.serving.merged import export_merged, merged
from milp_ray.study.run_folder import RunFolder
from tests.serving.conftest import ALIASES
from tests.trial.common import Snapshot

IDS = torch.arange(3, 40)[None]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_merged_weights_are_the_same_function_and_the_base_gets_its_own_back(
    family: str, load_tiny: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    base = load_tiny(family)
    attached = attach(base.model, lora_config(Placement.from_key("0:4,1:8"), base.architecture, 0.5))
    generator = torch.Generator().manual_seed(0)
    for matrix in attached.parameters():
        matrix.data.copy_(0.2 * torch.randn(matrix.shape, generator=generator))
    expected = logits(base.model)
    save_adapter(attached, tmp_path / "memory", base.settings.path)
    detach(base.model, attached)
    snapshot = Snapshot(base)
    with merged(base, load_lora(base, tmp_path / "memory")):
        torch.testing.assert_close(logits(base.model), expected, atol=1e-4, rtol=1e-4)
    snapshot.check()


def test_a_users_model_loads_as_any(run: RunFolder, base: BaseModel, tmp_path: Path) -> None:
    done = export_merged(run.location, tmp_path / "out", ["ann"])
    assert (done.memories, done.written, done.rank) == (1, 1, 8)
    [folder] = (tmp_path / "out").iterdir()
    assert folder.name.startswith(f"{ALIASES['ann']}-")
    model = AutoModelForCausalLM.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(base.settings.path)
    expected = logits(peft.PeftModel.from_pretrained(plain, str(run.layout.memory(ALIASES["ann"]))))
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(folder)("tea").input_ids == base.tokenizer("tea").input_ids
    assert export_merged(run.location, tmp_path / "out", ["ann"]).written == 0


def test_what_it_cannot_write_is_told(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="is a URL"):
        export_merged(run.location, "s3://bucket/models", ["ann"])
    with pytest.raises(RunFolderError, match="no memory"):
        export_merged(run.location, tmp_path / "out", ["nobody"])
