"""A base in a GGUF file is the base of the folder that it was made from, or refused beforehand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from milp_ray.config.models import ModelSettings
from milp_ray.errors import ModelError
from milp_ray.model import gguf_file
from milp_ray.model.base import BaseModel, load_base
from milp_ray.model.fingerprint import base_fingerprint
from milp_ray.model.parallel.group import Group
from milp_ray.model.parallel.sharding import Parallel
from milp_ray.model.pretrained import load_config, load_tokenizer
from milp_ray.model.requirements import check_requirements
from milp_ray.model.streaming import can_stream
from milp_ray.model.verify import verify_base
from tests.model.gguf_models import gguf, write_gguf
from tests.trial.ranks import on_ranks

IDS = torch.tensor([[1, 70, 80, 90, 100, 200, 2]])


def settings(path: Path, **more: Any) -> ModelSettings:
    return ModelSettings(path=str(path), device="cpu", **more)


def logits(base: BaseModel) -> torch.Tensor:
    with torch.inference_mode():
        return base.model(IDS).logits  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def models(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama with fewer keys than queries, one with tied embeddings, Qwen2 with biases, Qwen3."""
    root = tmp_path_factory.mktemp("models")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 128, "vocab_size": 316, "bos_token_id": 1,
             "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2, "rms_norm_eps": 1e-4,
             "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}}  # fmt: skip
    configs = {"llama": LlamaConfig(**sizes), "tied": LlamaConfig(**sizes, tie_word_embeddings=True),
               "qwen2": Qwen2Config(**sizes), "qwen3": Qwen3Config(**sizes)}  # fmt: skip
    folders = {}
    torch.manual_seed(0)
    for name, config in configs.items():
        folders[name] = Path(shutil.copytree(tiny_models["llama"], root / name))
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms that matter
                torch.nn.init.normal_(parameter, 1.0, 0.3)
        model.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def files(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("files")
    return {name: write_gguf(folder, root / f"{name}.gguf") for name, folder in models.items()}


@pytest.mark.parametrize("name", ["llama", "tied", "qwen2", "qwen3"])
def test_it_is_the_base_of_the_folder_that_it_was_made_from(
    name: str, models: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    ours, its = load_base(settings(files[name])), load_base(settings(models[name]))
    verify_base(settings(files[name]))
    torch.testing.assert_close(logits(ours), logits(its), rtol=1e-4, atol=1e-4)
    assert ours.architecture == its.architecture
    assert (ours.eos_id, ours.pad_id, ours.stop_ids) == (its.eos_id, its.pad_id, its.stop_ids)
    text = "Ada paid 123.50 for tea,\n\n1984 times."
    assert ours.tokenizer(text).input_ids == its.tokenizer(text).input_ids
    # Qwen2's tokenizer has one more of its own.
    assert len(ours.tokenizer) == len(its.tokenizer) <= ours.architecture.vocab_size
    assert max(ours.tokenizer("a <|endoftext|> b").input_ids) < len(its.tokenizer)
    assert ours.tokenizer.name_or_path == ours.model.name_or_path == str(files[name])
    # A plain model: it can be saved, and nothing calls it quantised.
    ours.model.save_pretrained(tmp_path / "saved")
    assert getattr(ours.model.config, "quantization_config", None) is None


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16"])
def test_what_is_quantised_is_dequantised(
    kind: str, models: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    base = load_base(settings(write_gguf(models["llama"], tmp_path / "model.gguf", kind=kind)))
    exact = load_base(settings(files["llama"])).model.state_dict()
    for name, tensor in base.model.state_dict().items():
        assert tensor.dtype == torch.float32
        error = (tensor - exact[name]).abs().max()
        assert error <= {"Q8_0": 0.01, "Q4_0": 0.15, "BF16": 0.01}[kind] * exact[name].abs().max()
    half = load_base(settings(files["llama"], dtype="bfloat16")).model
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}


def test_rotations_are_scaled_as_the_file_says(models: dict[str, Path], tmp_path: Path) -> None:
    """Llama 3.1 and later: transformers has a configuration for that, and GGUF only the factors."""
    config = LlamaConfig.from_pretrained(models["llama"])
    theta = config.rope_parameters["rope_theta"]
    config.rope_parameters = {
        "rope_type": "llama3", "rope_theta": theta, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    folder = Path(shutil.copytree(models["llama"], tmp_path / "scaled"))
    config.save_pretrained(folder)
    scaled = load_base(settings(folder))
    frequencies = scaled.model.model.rotary_emb.inv_freq
    plain = theta ** -(torch.arange(0, 16, 2) / 16)
    factors = (plain / frequencies).numpy().astype(np.float32)
    assert factors.max() > 2
    file = write_gguf(models["llama"], tmp_path / "model.gguf", more={"rope_freqs.weight": factors})
    torch.testing.assert_close(logits(load_base(settings(file))), logits(scaled), rtol=1e-4, atol=1e-4)


def test_numbers_are_set_apart_where_the_model_learned_it_so(models: dict[str, Path], tmp_path: Path) -> None:
    file = write_gguf(models["llama"], tmp_path / "model.gguf", values={"tokenizer.ggml.pre": "smollm"})
    split = load_tokenizer(settings(file)).backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [text for text, _ in split("a\n\n12 b")] == ["a", "ĊĊ", "1", "2", "Ġb"]


def test_a_split_that_transformers_knows_is_left_to_it(models: dict[str, Path], tmp_path: Path) -> None:
    file = write_gguf(models["llama"], tmp_path / "model.gguf", values={"tokenizer.ggml.pre": "llama-bpe"})
    split = load_tokenizer(settings(file)).backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [text for text, _ in split("a 1234")] == ["a", "Ġ", "123", "4"]


def test_a_chat_template_and_ends_of_turns_are_the_files(models: dict[str, Path], tmp_path: Path) -> None:
    values = {"tokenizer.chat_template": "{{ messages[0].content }}", "tokenizer.ggml.eot_token_id": 5}
    base = load_base(settings(write_gguf(models["llama"], tmp_path / "model.gguf", values=values)))
    assert base.tokenizer.chat_template == "{{ messages[0].content }}"
    assert base.stop_ids == {2, 5}


def test_nothing_beside_the_file_is_read(
    models: dict[str, Path], files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither another model's settings and adapter in its folder, nor its namesake in the working
    folder, which transformers would prefer."""
    folder = Path(shutil.copytree(models["qwen2"], tmp_path / "folder"))
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<s>"}', encoding="utf-8")
    file = Path(shutil.copy(files["llama"], folder / "model.gguf"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    given = settings(file)
    check_requirements(given, load_config(given))
    base = load_base(settings(Path("folder/model.gguf")))
    assert (base.architecture.model_type, base.eos_id) == ("llama", 2)


def test_another_file_is_noticed_by_its_fingerprint(files: dict[str, Path], tmp_path: Path) -> None:
    file = Path(shutil.copy(files["llama"], tmp_path / "llama.gguf"))
    before = base_fingerprint(settings(files["llama"]))
    assert before == base_fingerprint(settings(file)) and set(before) == {"llama.gguf"}
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert base_fingerprint(settings(file)) != before


def divided(group: Group, files: dict[str, Path]) -> list[list[Any]]:
    """Logits of bases that are divided over this rank and others, one each way."""
    found = []
    for name, strategy in (("tied", "zero3"), ("llama", "fsdp")):
        base = load_base(settings(files[name]), Parallel(group, strategy))  # type: ignore[arg-type]
        with base.measuring():
            found.append(base.root(lambda hidden: hidden, input_ids=IDS).tolist())
    return found


@pytest.mark.slow
def test_it_can_be_divided_though_its_weights_are_read_whole(files: dict[str, Path]) -> None:
    expected = []
    for name in ("tied", "llama"):
        given = settings(files[name])
        assert not can_stream(given, load_config(given))
        base = load_base(given)
        with base.measuring():
            expected.append(base.root(lambda hidden: hidden, input_ids=IDS))
    for rank in on_ranks(divided, files):
        for ours, whole in zip(rank, expected, strict=True):
            torch.testing.assert_close(torch.tensor(ours), whole)


def test_the_header_is_read_once(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(files["tied"])
    first = load_config(given)
    monkeypatch.setattr(gguf, "GGUFReader", None)
    again = load_config(given)
    assert again is not first and again.to_dict() == first.to_dict()


def test_lists_are_read_as_gguf_itself_reads_them(files: dict[str, Path]) -> None:
    theirs = gguf.GGUFReader(files["llama"])
    with gguf_file.quick_reader():
        ours = gguf.GGUFReader(files["llama"])
    assert type(ours) is not type(theirs)
    assert {name: field.contents() for name, field in ours.fields.items()} == {
        name: field.contents() for name, field in theirs.fields.items()
    }
    offsets = [[tensor.data_offset for tensor in reader.tensors] for reader in (ours, theirs)]
    assert offsets[0] == offsets[1]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def cut_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:2000])


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", encoding="utf-8")


def other(file: Path) -> None:
    file.write_bytes(b"PK\3\4 no such thing")


@pytest.mark.parametrize(
    ("damage", "fact"),
    [
        (cut, "is cut or damaged"),
        (cut_header, "is cut or damaged"),
        (pointer, "is a pointer of Git LFS"),
        (other, "is no GGUF file"),
    ],
)
def test_a_damaged_file_is_refused(
    damage: Callable[[Path], None], fact: str, files: dict[str, Path], tmp_path: Path
) -> None:
    file = Path(shutil.copy(files["llama"], tmp_path / "model.gguf"))
    damage(file)
    assert f"model.gguf {fact}" in refused(settings(file))


@pytest.mark.parametrize(
    ("what", "fact"),
    [
        ({"values": {"general.type": "adapter"}}, "holds no model (adapter)"),
        ({"values": {"split.count": 3}}, "is one of 3 parts"),
        ({"values": {"general.architecture": "bert"}}, "holds a model of architecture 'bert'"),
        ({"values": {"general.architecture": "gpt2"}}, "holds a model of architecture 'gpt2'"),
        ({"values": {"llama.rope.scaling.type": "yarn"}}, "scales positions (yarn)"),
        ({"values": {"tokenizer.ggml.pre": "new"}}, "splits text as 'new' does"),
        ({"values": {"tokenizer.ggml.pre": None}}, "does not say how its tokenizer splits text"),
        (
            {"more": {"blk.0.attn_q.bias": np.zeros(64, np.float32)}},
            "holds 1 tensors that the model has no",
        ),
        ({"without": ("blk.1.ffn_up.weight",)}, "lacks 1 tensors, such as 'blk.1.ffn_up.weight'"),
        ({"values": {"llama.feed_forward_length": 80}}, "of 96 x 64 numbers, where the model has 80 x 64"),
        (
            {"more": {"rope_freqs.weight": np.zeros(8, np.int32)}},
            "in a way that cannot be undone (I32",
        ),
    ],
)
def test_what_transformers_would_read_otherwise_is_refused_by_the_header(
    what: dict[str, Any], fact: str, models: dict[str, Path], tmp_path: Path
) -> None:
    assert fact in refused(settings(write_gguf(models["llama"], tmp_path / "model.gguf", **what)))


def test_without_the_package_the_extra_is_named(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gguf_file.importlib.util.find_spec
    monkeypatch.setattr(
        gguf_file.importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name)
    )
    said = refused(settings(files["llama"]))
    assert "llama.gguf needs a package that is not there: gguf" in said
    assert 'pip install "milp_ray[gguf]"' in said


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert "'tiny.gguf' does not exist" in refused(settings(Path("tiny.gguf")))


def refused(given: ModelSettings) -> str:
    """A driver's look and a worker's loading refuse it alike, and no weight is read."""
    said = []
    for look in (verify_base, load_base):
        with pytest.raises(ModelError) as caught:
            look(given)
        (problem,) = caught.value.problems
        assert problem.where == "model.path" and problem.expected and problem.remedy
        said.append(str(caught.value))
    assert said[0] == said[1]
    return said[0]
