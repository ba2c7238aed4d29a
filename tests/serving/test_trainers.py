"""A placement as other trainers' settings: what each makes of them has the memory's own shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from milp_ray.errors import RunFolderError, StudyError
from milp_ray.ids import POPULATION
from milp_ray.memory.adapters import lora_config
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel
from milp_ray.model.fingerprint import base_fingerprint
from milp_ray.serving.trainers import TRAINERS, recipe
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.tables import write_table
from tests.serving.conftest import ALIASES, KEY, study_of

ANN, BOB, EVE = ALIASES["ann"], ALIASES["bob"], ALIASES["eve"]
MIXED, UNIFORM = "0:4,1:8", "0:8,1:8"


def searched(
    base: BaseModel, root: Path, chosen: dict[str, str], *, scaling: float = 1.0, unit: str = "user"
) -> str:
    """A run of two trials a user, of which the second one is chosen; trial 0 is of rank 2."""
    memory, search = {"scaling": scaling, "dropout": 0.25}, {"unit": unit}
    study = study_of(base, root, memory=memory, search=search)
    folder = RunFolder.create(study, "f" * 64, KEY, base_fingerprint(study.model))
    rows = [
        {"user": alias, "trial": number, "placement": key}
        for alias, placement in chosen.items()
        for number, key in ((-1, ""), (0, "1:2"), (1, placement))
    ]
    table = pd.DataFrame(rows)
    write_table(table, folder.layout.table("trials"))
    write_table(table[(table.trial == 1) & (table.user != EVE)], folder.layout.table("chosen"))
    return folder.location


def ranks(base: BaseModel, config: LoraConfig) -> dict[str, tuple[int, float]]:
    """What PEFT makes of a configuration: rank and scaling of each module."""
    model = get_peft_model(base.model, config)
    try:
        return {
            name.removeprefix("base_model.model."): (layer.r["default"], layer.scaling["default"])
            for name, layer in model.named_modules()
            if isinstance(layer, LoraLayer)
        }
    finally:
        model.unload()


def of_python(text: str) -> LoraConfig:
    made: dict[str, Any] = {}
    exec(text, made)
    return made["config"]


def of_axolotl(text: str) -> LoraConfig:
    """As axolotl 0.19.0 builds it."""
    cfg = yaml.safe_load(text)
    assert cfg["adapter"] == "lora"
    alphas = [cfg["lora_alpha"], *cfg.get("lora_alpha_pattern", {}).values()]
    assert all(type(alpha) is int for alpha in alphas)  # pydantic's PositiveInt
    return LoraConfig(
        r=cfg["lora_r"],
        lora_alpha=cfg["lora_alpha"],
        target_modules=cfg["lora_target_modules"],
        lora_dropout=cfg["lora_dropout"],
        rank_pattern=cfg.get("lora_rank_pattern") or {},
        alpha_pattern=cfg.get("lora_alpha_pattern") or {},
        task_type="CAUSAL_LM",
    )


def of_llama_factory(text: str) -> LoraConfig:
    """As LLaMA-Factory 0.9.5 builds it."""
    cfg = yaml.safe_load(text)
    assert cfg["finetuning_type"] == "lora"
    return LoraConfig(
        r=cfg["lora_rank"],
        lora_alpha=cfg["lora_alpha"],
        target_modules=[name.strip() for name in cfg["lora_target"].split(",")],
        lora_dropout=cfg["lora_dropout"],
        task_type="CAUSAL_LM",
    )


READ = {"peft": of_python, "trl": of_python, "axolotl": of_axolotl, "llama-factory": of_llama_factory}


# What LLaMA-Factory cannot express is refused: the test after this one.
CASES = [(name, key) for name in sorted(TRAINERS) for key in (MIXED, UNIFORM)]
CASES.remove(("llama-factory", MIXED))


@pytest.mark.parametrize(("trainer", "key"), CASES)
def test_a_trainer_makes_the_very_modules_ranks_and_scalings(
    base: BaseModel, tmp_path: Path, trainer: str, key: str
) -> None:
    run = searched(base, tmp_path, {ANN: key}, scaling=2.0)
    text = recipe(run, ANN, trainer)
    assert text.splitlines()[0] == f"# {ANN}, trial 1"
    config = READ[trainer](text)
    assert config.lora_dropout == 0.25
    expected = lora_config(Placement.from_key(key), base.architecture, 2.0, 0.25)
    assert ranks(base, config) == ranks(base, expected)


def test_several_ranks_are_refused_where_a_trainer_has_one(base: BaseModel, tmp_path: Path) -> None:
    run = searched(base, tmp_path, {ANN: MIXED})
    with pytest.raises(
        StudyError, match=r"one rank for all modules, and the placement has 4 and 8"
    ) as caught:
        recipe(run, ANN, "llama-factory")
    assert "adapter_name_or_path" in str(caught.value)


@pytest.mark.parametrize("trainer", ["axolotl", "llama-factory"])
def test_an_alpha_that_is_no_whole_number_is_refused_where_a_trainer_takes_whole_ones(
    base: BaseModel, tmp_path: Path, trainer: str
) -> None:
    run = searched(base, tmp_path, {ANN: UNIFORM}, scaling=0.3)
    assert of_python(recipe(run, ANN)).lora_alpha == pytest.approx(2.4)
    with pytest.raises(StudyError, match=r"whole numbers for alpha, and memory.scaling makes it 2.4"):
        recipe(run, ANN, trainer)


def test_any_trial_can_be_asked_for(base: BaseModel, tmp_path: Path) -> None:
    run = searched(base, tmp_path, {ANN: MIXED, EVE: UNIFORM})
    text = recipe(run, ANN, trial=0)
    assert text.startswith(f"# {ANN}, trial 0\n")
    assert of_python(text).r == 2
    with pytest.raises(RunFolderError, match="has no trial 7"):
        recipe(run, ANN, trial=7)
    with pytest.raises(RunFolderError, match="has no trial -1"):
        recipe(run, ANN, trial=-1)
    with pytest.raises(RunFolderError, match="nothing is chosen"):
        recipe(run, EVE)


def test_of_a_searched_population_everybody_gets_its_placement(base: BaseModel, tmp_path: Path) -> None:
    run = searched(base, tmp_path, {POPULATION: MIXED}, unit="population")
    assert recipe(run, ANN) == recipe(run, POPULATION)
    assert recipe(run, ANN).startswith("# population, trial 1\n")


def test_who_or_what_is_not_there_is_said(base: BaseModel, tmp_path: Path) -> None:
    run = searched(base, tmp_path, {ANN: MIXED})
    with pytest.raises(RunFolderError, match="no such user"):
        recipe(run, BOB)
    with pytest.raises(StudyError, match="no trainer is named 'unsloth'") as caught:
        recipe(run, ANN, "unsloth")
    assert all(name in str(caught.value) for name in TRAINERS)


def test_a_run_without_tables_is_told(run: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="no tables yet"):
        recipe(run.location, ANN)
