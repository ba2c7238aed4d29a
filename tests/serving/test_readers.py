"""Memories read by others: llama.cpp through its own converter, and onnxruntime-genai.

Their packages (some 200 MB) are no part of milp_ray's; every night this fetches them into an
environment of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from milp_ray.config.models import ModelSettings
from milp_ray.model.base import load_base
from milp_ray.model.fingerprint import base_fingerprint
from milp_ray.serving.export import MANIFEST, export
from milp_ray.study.run_folder import RunFolder
from tests.conftest import byte_tokenizer
from tests.serving.conftest import ALIASES, KEY, remember, study_of

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]
HERE = Path(__file__).parent / "readers"
# The source package of llama-cpp-python carries llama.cpp's converters, and xllamacpp a built one.
SOURCES = "llama-cpp-python==0.3.36"
PACKAGES = (
    "xllamacpp==2026.10.11549",
    "onnxruntime-genai==0.18.0",
    "onnxruntime==1.32.0",
    "onnx==1.23.2",
    "onnx-ir==1.1.0",
    "ml-dtypes==0.5.4",
    "flatbuffers==25.9.23",
)
IDS = [5, 9, 33, 100, 20, 7, 30, 12]
CLOSE = 0.02  # nats: llama.cpp keeps keys and values in half precision
WRONG = 0.5


@dataclass(frozen=True)
class Readers:
    """An environment with the readers, and llama.cpp's converters."""

    python: Path
    sources: Path
    folder: Path

    def run(self, *words: object) -> None:
        done = subprocess.run(
            [str(self.python), *map(str, words)], capture_output=True, text=True, timeout=600, cwd=self.folder
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def convert(self, script: str, *words: object) -> None:
        self.run(HERE / "convert.py", self.sources, script, *words)

    def next_token(self, reader: str, model: Path, adapter: Path | None) -> dict[int, float]:
        """Log-probability by token, of 200 tokens or more."""
        out = self.folder / "next.json"
        self.run(HERE / f"{reader}.py", model, adapter, json.dumps(IDS), out)
        return {int(token): value for token, value in json.loads(out.read_text()).items()}


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Readers:
    folder = tmp_path_factory.mktemp("readers")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "-q", "--disable-pip-version-check"]
    try:
        subprocess.run([*pip, "install", "--no-deps", *PACKAGES], check=True, timeout=600)
        words = ["download", "--no-deps", "--no-binary", ":all:", "-d", str(folder), SOURCES]
        subprocess.run([*pip, *words], check=True, timeout=600)
    except subprocess.SubprocessError:
        pytest.skip("the readers' packages could not be fetched")
    # torch, transformers and gguf are those of these tests.
    mine, theirs = sysconfig.get_path("purelib"), next((folder / "venv" / "lib").glob("python*"))
    (theirs / "site-packages" / "zz_mine.pth").write_text(mine + "\n")
    with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as archive:
        part = "/vendor/llama.cpp/"
        archive.extractall(folder, [it for it in archive if part in it.name and it.isfile()], filter="data")
    return Readers(python, next(folder.glob("llama_cpp_python-*/vendor/llama.cpp")), folder)


def tiny(folder: Path, family: str) -> Path:
    tokenizer = byte_tokenizer()
    config, model = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[family]
    torch.manual_seed(0)
    model(
        config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=128,
            initializer_range=0.2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with one memory, of ranks 4 and 16."""
    root = tmp_path_factory.mktemp(request.param)
    base = load_base(ModelSettings(path=str(tiny(root / "base", request.param)), device="cpu"))
    study = study_of(base, root / "runs")
    folder = RunFolder.create(study, "f" * 64, KEY, base_fingerprint(study.model))
    remember(base, folder, "ann", "0:4,2:16", 1)
    return folder


@pytest.fixture
def base(run: RunFolder) -> Path:
    return Path(run.study.model.path)


@pytest.fixture
def expected(run: RunFolder, base: Path) -> torch.Tensor:
    """Log-probabilities of the next token by PEFT, on the memory as the run has it."""
    plain = AutoModelForCausalLM.from_pretrained(base)
    return log_probs(peft.PeftModel.from_pretrained(plain, str(run.layout.memory(ALIASES["ann"]))))


def log_probs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([IDS])).logits[0, -1].float(), -1)


def exported(run: RunFolder, place: Path, engine: str) -> Path:
    export(run.location, place, engine)
    return place / json.loads((place / MANIFEST).read_text().splitlines()[0])["name"]


def furthest(found: dict[int, float], expected: torch.Tensor, tokens: Sequence[int] | None = None) -> float:
    """The largest difference of a log-probability, in nats."""
    return max(abs(found[token] - float(expected[token])) for token in tokens or found)


def test_llama_cpp_reads_the_form_that_is_written_for_it_and_no_other(
    readers: Readers, run: RunFolder, base: Path, expected: torch.Tensor, tmp_path: Path
) -> None:
    model = tmp_path / "base.gguf"
    readers.convert("convert_hf_to_gguf.py", base, "--outfile", model, "--outtype", "f32")
    differences = {}
    for engine in ("llama.cpp", "peft"):
        adapter = tmp_path / f"{engine}.gguf"
        memory = exported(run, tmp_path / engine, engine)
        readers.convert(
            "convert_lora_to_gguf.py", memory, "--base", base, "--outfile", adapter, "--outtype", "f32"
        )
        differences[engine] = furthest(readers.next_token("llama_cpp", model, adapter), expected)
    assert differences["llama.cpp"] < CLOSE, differences
    # One alpha for all ranks: without an error, a lesser rank is too strong (docs/serving.md).
    assert differences["peft"] > WRONG, differences


@pytest.mark.parametrize("engine", ["peft", "llama.cpp"])
def test_onnxruntime_genai_reads_both_forms(
    readers: Readers, run: RunFolder, base: Path, expected: torch.Tensor, tmp_path: Path, engine: str
) -> None:
    memory = exported(run, tmp_path / "memory", engine)
    words = ["-i", base, "-o", tmp_path / "onnx", "-p", "fp32", "-e", "cpu", "-c", tmp_path / "cache"]
    extra = ["--extra_options", f"adapter_path={memory}"]
    readers.run("-m", "onnxruntime_genai.models.builder", *words, *extra)
    found = readers.next_token("onnx_genai", tmp_path / "onnx", None)
    assert len(found) >= len(expected)
    assert furthest(found, expected, range(len(expected))) < 1e-3
    plain = log_probs(AutoModelForCausalLM.from_pretrained(base))
    assert furthest(found, plain, range(len(expected))) > WRONG  # and the memory is in it
