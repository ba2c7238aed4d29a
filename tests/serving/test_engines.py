"""What each engine takes, asked of adapters as its documentation describes them."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from milp_ray.errors import StudyError
from milp_ray.memory.architectures import architecture_of
from milp_ray.serving.engines import ENGINES, AdapterFiles, Served, find_engine, problems, study_problems

LLAMA = architecture_of(
    LlamaConfig(
        num_hidden_layers=2, hidden_size=32, intermediate_size=64, vocab_size=64, num_attention_heads=2
    )
)
SERVED = Served("llama", 2, "base", "s3://bucket/memories")


def adapter(ranks: dict[int, int], **config: object) -> AdapterFiles:
    """Ranks by layer; the configuration is that of one rank unless it says otherwise."""
    shapes = {}
    for layer, rank in ranks.items():
        for module in LLAMA.modules(layer):
            name = f"base_model.model.{module.name}.lora"
            shapes[f"{name}_A.weight"] = (rank, module.in_features)
            shapes[f"{name}_B.weight"] = (module.out_features, rank)
    largest = max(ranks.values())
    values = {
        "peft_type": "LORA",
        "base_model_name_or_path": "base",
        "r": largest,
        "lora_alpha": largest,
        "target_modules": sorted(m.name for layer in ranks for m in LLAMA.modules(layer)),
    }
    return AdapterFiles(values | config, shapes)


EVEN, ONE_LAYER = adapter({0: 8, 1: 8}), adapter({1: 8})
MIXED = adapter(
    {0: 4, 1: 8},
    rank_pattern={"model.layers.0.mlp.up_proj": 4},
    alpha_pattern={"model.layers.0.mlp.up_proj": 4},
)


def refused_by(files: AdapterFiles, served: Served = SERVED) -> set[str]:
    return {name for name, engine in ENGINES.items() if problems(engine, files, served)}


def test_one_rank_in_every_layer_is_served_by_all() -> None:
    assert refused_by(EVEN) == set()


def test_ranks_by_layer_are_for_readers_of_patterns() -> None:
    assert refused_by(MIXED) == {"sglang", "lorax", "llama.cpp"}


def test_a_layer_without_a_memory_is_left_out_by_lorax_alone() -> None:
    assert refused_by(ONE_LAYER) == {"lorax"}


def test_a_scaling_of_its_own_is_another_function_where_one_alpha_is_taken_for_all() -> None:
    odd = adapter({0: 8, 1: 8}, alpha_pattern={"model.layers.0.mlp.up_proj": 4})
    assert refused_by(odd) == set(ENGINES) - {"peft"}


@pytest.mark.parametrize("config", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_what_is_no_plain_lora_is_refused(config: dict[str, object]) -> None:
    assert refused_by(adapter({0: 8, 1: 8}, **config)) == set(ENGINES) - {"peft"}


def test_a_pattern_of_modules_is_no_list() -> None:
    files = adapter({0: 8, 1: 8}, target_modules=".*mlp.*")
    assert refused_by(files) == {"vllm", "sglang", "ray-serve", "lorax"}


def test_vllms_resolver_compares_the_bases_name() -> None:
    assert refused_by(EVEN, Served("llama", 2, "other", "s3://bucket")) == {"vllm", "ray-serve"}


def test_ray_serve_loads_from_a_cloud_store_alone() -> None:
    assert refused_by(EVEN, Served("llama", 2, "base", "/shared/memories")) == {"ray-serve"}


def test_ranks_that_a_server_can_be_set_to() -> None:
    assert [ENGINES["vllm"].rank_for(rank) for rank in (1, 2, 8, 9, 65, 512)] == [1, 8, 8, 16, 128, 512]
    assert ENGINES["sglang"].rank_for(24) == 24
    with pytest.raises(StudyError, match=r"serves at most 512(.|\n)*memory\.max_rank: 512"):
        ENGINES["vllm"].rank_for(513)


def test_before_a_search_what_could_not_be_served_is_told() -> None:
    gpt2 = Served("gpt2", 2, "base")
    for name, told in (("vllm", True), ("llama.cpp", True), ("sglang", False)):
        assert bool(list(study_problems(ENGINES[name], gpt2))) is told
    [large] = study_problems(ENGINES["vllm"], Served("llama", 2, "base"), largest_rank=3072)
    assert large.where == "memory.max_rank" and "3072" in large.fact
    assert not list(study_problems(ENGINES["vllm"], Served("llama", 2, "base"), largest_rank=512))


def test_an_unknown_engine_is_told_which_there_are() -> None:
    with pytest.raises(StudyError, match="one of peft, vllm, sglang, ray-serve, lorax"):
        find_engine("vlm")
