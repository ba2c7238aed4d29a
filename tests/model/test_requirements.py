"""Requirements of a base's files, and adapters beside them, are told before a worker meets them."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.quantizers import auto

from milp_ray.config.models import ModelSettings
from milp_ray.errors import ModelError, StorageError
from milp_ray.model import pretrained, requirements
from milp_ray.model.base import load_base
from milp_ray.model.pretrained import load_config, load_tokenizer
from milp_ray.model.requirements import check_requirements
from milp_ray.model.verify import verify_base
from tests.model.test_base import edit, settings

LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


@pytest.fixture
def model(shallow_model: Path, tmp_path: Path) -> Path:
    """A copy of a tiny Llama to do damage to."""
    return Path(shutil.copytree(shallow_model, tmp_path / "model"))


def checked(given: ModelSettings) -> None:
    """As a driver looks at a base, without loading it."""
    check_requirements(given, load_config(given))
    load_tokenizer(given)
    verify_base(given)


def refused(given: ModelSettings) -> str:
    """The driver's look and a worker's loading refuse it alike."""
    said = []
    for look in (checked, load_base):
        with pytest.raises(ModelError) as caught:
            look(given)
        (problem,) = caught.value.problems
        assert problem.where == "model.path" and problem.expected and problem.remedy
        said.append(str(caught.value))
    assert said[0] == said[1]
    return said[0]


def adapter_beside(folder: Path) -> None:
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LORA).save_pretrained(folder)


def adapter_inside(folder: Path) -> None:
    """The weights of a model and of the adapter on it in one file, as checkpoints have them."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LORA)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def adapter_among(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def fewer_layers(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=3)


def other_shapes(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=64)


def half_a_shard(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    shard = folder / "model-00002-of-00003.safetensors"
    shard = shard if shard.exists() else sorted(folder.glob("model-00002-of-*"))[0]
    shard.write_bytes(shard.read_bytes()[:-64])


def lost_shard(folder: Path) -> None:
    half_a_shard(folder)
    sorted(folder.glob("model-00002-of-*"))[0].unlink()


def a_page_for_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<!DOCTYPE html><html><body>Sign in</body></html>")


def cloned_without_lfs(folder: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n")


def weights_for_llama_cpp(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model-q4_k_m.gguf").write_bytes(b"GGUF\3\0\0\0")


def flash_attention(folder: Path) -> None:
    edit(folder / "config.json", _attn_implementation="flash_attention_2")


def attention_of_the_hub(folder: Path) -> None:
    edit(folder / "config.json", _attn_implementation="kernels-community/flash-attn")


def unknown_rotation(folder: Path) -> None:
    edit(folder / "config.json", rope_scaling={"rope_type": "spiral", "factor": 2.0})


def unknown_way_to_quantise(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "gptq9", "bits": 4})


def own_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    values = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["tokenization_mine.Mine", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    (folder / "tokenization_mine.py").write_text("class Mine: pass\n")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (adapter_beside, "holds an adapter (adapter_config.json)"),
        (adapter_inside, "hold an adapter, which would be left out"),
        (adapter_among, "hold an adapter, which would be left out"),
        (fewer_layers, "more layers than the 3 of config.json, such as 'model.layers.3."),
        (other_shapes, "such as 'model.layers.0.mlp.down_proj.weight': 32 x 48, not 32 x 64"),
        (half_a_shard, "model-00002-of-00010.safetensors of the weights at"),
        (half_a_shard, "is cut or damaged ("),
        (lost_shard, "model-00002-of-00010.safetensors of the weights at"),
        (lost_shard, "is not there"),
        (a_page_for_weights, "model.safetensors of the weights at"),
        (cloned_without_lfs, "in place of the files themselves: model.safetensors, tokenizer.json"),
        (weights_for_llama_cpp, "has its weights as GGUF alone (model-q4_k_m.gguf)"),
        (flash_attention, "needs a package that is not there: FlashAttention2"),
        (flash_attention, "take _attn_implementation out of the model's config.json"),
        (attention_of_the_hub, "needs a package that is not there: `kernels`"),
        (attention_of_the_hub, "take _attn_implementation out of the model's config.json"),
        (unknown_rotation, "KeyError at modeling_llama.py"),
        (own_tokenizer, "the tokenizer is code of the model's own repository"),
    ],
)  # fmt: skip
def test_what_every_worker_would_meet_is_found_without_loading(
    damage: Callable[[Path], None], says: str, model: Path
) -> None:
    damage(model)
    assert says in refused(settings(model))


def test_a_folder_that_lacks_configuration_or_tokenizer_is_said_to(model: Path) -> None:
    """And not in the words of a library that looks for something in them."""
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\n"):
        load_tokenizer(settings(model))
    (model / "config.json").unlink()
    for adapter, says in ((False, "has no config.json\n"), (True, "has no config.json, but an adapter\n")):
        if adapter:
            (model / "adapter_config.json").write_text("{}")
        with pytest.raises(ModelError) as caught:
            load_config(settings(model))
        assert says in str(caught.value)
    assert "name the base that the adapter was trained on" in str(caught.value)


def test_a_hub_that_is_not_asked_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for offline, says in ((True, "unset HF_HUB_OFFLINE"), (False, "remedy: correct model.path")):
        monkeypatch.setattr(pretrained, "HF_HUB_OFFLINE", offline)
        with pytest.raises(ModelError) as caught:
            load_config(ModelSettings(path="nobody/no-such-model"))
        assert says in str(caught.value)


@pytest.mark.parametrize("value", ["file", "file/of/the/compiler"])
def test_a_folder_that_pytorch_cannot_make_is_no_fault_of_the_model(
    value: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / value))

    def imports_the_compiler(*_: object, **__: object) -> None:
        os.makedirs(f"{os.environ['TORCHINDUCTOR_CACHE_DIR']}/aot")  # noqa: PTH103  (as PyTorch does)

    monkeypatch.setattr(AutoConfig, "from_pretrained", imports_the_compiler)
    with pytest.raises(StorageError, match=r"^TORCHINDUCTOR_CACHE_DIR: the folder .*Not a directory"):
        load_config(settings(model))


def test_a_tokenizer_that_lfs_left_out_is_said_in_the_same_words(model: Path) -> None:
    cloned_without_lfs(model)
    said = []
    for look in (load_tokenizer, lambda given: check_requirements(given, load_config(given))):
        with pytest.raises(ModelError) as caught:
            look(settings(model))
        said.append(str(caught.value))
    assert said[0] == said[1]  # check tells what is equal once


@pytest.mark.parametrize(
    "damage",
    [fewer_layers, other_shapes, unknown_way_to_quantise],
    ids=lambda damage: damage.__name__,
)
def test_the_error_stands_alone_without_transformers_own_report(
    damage: Callable[[Path], None], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import logging as hf_logging

    said: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    hf_logging.add_handler(handler)
    try:
        damage(model)
        refused(settings(model))
    finally:
        hf_logging.remove_handler(handler)
    assert said == []


def test_a_whole_base_passes(tiny_models: dict[str, Path]) -> None:
    for folder in tiny_models.values():
        checked(settings(folder))


def test_a_base_that_comes_with_adapters_on_it_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose own code puts them there."""
    plain = AutoModelForCausalLM.from_pretrained

    def adapted(*words: object, **more: object) -> object:
        found, info = plain(*words, **more)
        get_peft_model(found, LORA)
        return found, info

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", adapted)
    assert "comes with an adapter on it (at 'model.layers.0.self_attn.q_proj')" in refused(settings(model))


def _quantised(folder: Path, method: str, **more: object) -> None:
    values: dict[str, object] = {"quant_method": method.removesuffix("_4bit").removesuffix("_8bit")}
    values |= {"load_in_4bit": True} if method.endswith("_4bit") else {}
    values |= {"load_in_8bit": True} if method.endswith("_8bit") else {}
    values |= {"bits": 4, "group_size": 128} | more
    edit(folder / "config.json", quantization_config=values)


def test_every_way_to_quantise_whose_package_is_missing_is_named(model: Path) -> None:
    """By transformers' own table, so that a way it learns is known here."""
    named = 0
    for method in auto.AUTO_QUANTIZER_MAPPING:
        _quantised(model, method)
        try:
            check_requirements(settings(model), load_config(settings(model)))
        except ModelError as error:
            assert f"is quantised ({method.removesuffix('_4bit').removesuffix('_8bit')}): " in str(error)
            assert "fetch the model again" not in str(error)
            named += "pip install" in error.problems[0].fact and "install it on every node" in str(error)
    assert named >= 5, "this environment has all the packages: the test shows nothing"


@pytest.mark.skipif("optimum" in sys.modules, reason="optimum is there")
def test_a_quantised_base_is_refused_by_driver_and_worker_alike(model: Path) -> None:
    _quantised(model, "gptq")
    assert "Loading a GPTQ quantized model requires optimum" in refused(settings(model))
    _quantised(model, "gptq9")
    assert "in a way that transformers does not know (gptq9)" in refused(settings(model))
    edit(model / "config.json", quantization_config={"bits": 4})
    assert "quantised, but not how (no quant_method)" in refused(settings(model))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_only_a_gpus_machine_can_tell_is_left_to_it(model: Path) -> None:
    _quantised(model, "spqr", bits=3)
    check_requirements(ModelSettings(path=str(model)), load_config(settings(model)))
    with pytest.raises(ModelError, match="GPU is required"):
        check_requirements(settings(model), load_config(settings(model)))


def without_tokenizer_json(model: Path) -> None:
    """As Llama's and Mistral's folders came at first: what remains is for a SentencePiece file."""
    (model / "tokenizer.json").unlink()
    names = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (model / "tokenizer_config.json").write_text(json.dumps(names))


def test_a_tokenizer_of_sentencepiece_is_not_said_to_be_one_of_tiktoken(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_tokenizer_json(model)
    (model / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15")  # the beginning of one
    with monkeypatch.context() as patch:
        patch.setattr(requirements, "_is_installed", lambda module: module != "sentencepiece")
        with pytest.raises(ModelError) as caught:
            load_tokenizer(settings(model))
    assert "pip install sentencepiece on every node" in str(caught.value) and "tiktoken" not in str(
        caught.value
    )


def test_folders_of_llama_and_mistral_with_sentencepiece_alone_load(model: Path) -> None:
    spm = pytest.importorskip("sentencepiece")
    without_tokenizer_json(model)
    texts = [f"number {n} of many words, such as {chr(97 + n % 26) * 3} and tea" for n in range(300)]
    with (model / "tokenizer.model").open("wb") as file:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, vocab_size=90, model_type="bpe", minloglevel=2
        )
    assert load_tokenizer(settings(model)).decode(load_tokenizer(settings(model)).encode("many words")[1:])


def test_a_missing_package_of_a_tokenizer_is_said_in_its_own_words(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        try:
            import no_such_package_at_all  # type: ignore[import-not-found]  # noqa: F401
        except ImportError as error:
            raise ValueError("`zork` is required to read this file:\n\n  pip install zork") from error

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", missing)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(settings(model))
    assert "the tokenizer needs a package that is not there: `zork` is required" in str(caught.value)
