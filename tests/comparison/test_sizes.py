from pathlib import Path

import pytest
from transformers import AutoConfig

from milp_ray.comparison.sizes import everywhere, llama2_7b, llama2_13b, memory_figure, parameters_table
from milp_ray.evaluation.memory_use import (
    measured_prompt_memory,
    parameter_memory,
    parameters_of,
    prompt_memory,
)
from milp_ray.memory.architectures import architecture_of
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel


def test_llama2_has_its_published_size() -> None:
    assert parameters_of(llama2_7b()) == 6_738_415_616
    assert parameters_of(llama2_13b()) == 13_015_864_320


def test_a_lora_everywhere_is_rank_times_both_widths_of_three_modules() -> None:
    architecture = architecture_of(llama2_7b())
    assert architecture.trainable_params(everywhere(architecture, 16)) == 32 * 16 * 3 * (4096 + 11008)
    assert parameter_memory(architecture, Placement(((0, 8), (31, 8)))) == 2 * 2 * 8 * 3 * (4096 + 11008)


def test_a_prompts_keys_and_values_of_llama2_7b_take_half_a_mebibyte_a_token() -> None:
    memory = prompt_memory(llama2_7b(), tokens=100)
    assert memory.attention == 100 * 2**19
    assert memory.embeddings == 100 * 4096 * 2 and memory.total > memory.attention


@pytest.mark.parametrize("name", ["llama", "gpt2", "roberta"])
def test_measured_memory_grows_with_the_prompt_as_computed(
    name: str, tiny_bases: dict[str, BaseModel], capfd: pytest.CaptureFixture[str]
) -> None:
    base = tiny_bases[name]
    short, long = (measured_prompt_memory(base, tokens) for tokens in (16, 48))
    computed = prompt_memory(base.model.config, 48, 4).total - prompt_memory(base.model.config, 16, 4).total
    assert 0.5 * computed < long - short < 4 * computed
    assert capfd.readouterr() == ("", ""), "a profiler's own lines do not reach the terminal"


def test_more_tokens_than_the_model_takes_are_refused(llama: BaseModel) -> None:
    with pytest.raises(ValueError, match="takes 1 to"):
        measured_prompt_memory(llama, llama.architecture.context + 1)


def test_parameters_of_llama2_and_of_the_model_at_hand(tiny_models: dict[str, Path]) -> None:
    config = AutoConfig.from_pretrained(tiny_models["llama"])
    table = parameters_table({"tiny": config}, (8, 16), {"tiny": [100, 300]})
    shown = {(row[0], row[1]): row[2] for row in table.rows}
    assert shown["LLaMA2-7B", "full training"] == "6,738.42"
    assert shown["LLaMA2-7B", "every layer, rank 8"] == "11.60"
    numbers = table.numbers.set_index(["model", "method"]).parameters
    assert numbers["tiny", "searched (mean of the users' chosen)"] == 200


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "figure_3_memory.png"
    memory_figure(path, 16, {"tiny": [(16, 1000, 900), (64, 4000, 3600)]})
    assert path.read_bytes().startswith(b"\x89PNG")
