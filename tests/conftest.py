"""What several test folders share: measured data beside the checkout, tiny random models, an S3
server."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Before torch is imported. Models here are tiny: threads would only wait for each other, and for
# long where tests run side by side.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# Ray's workers are nice by 15: beside a test that computes they get next to nothing, and count as
# hung.
os.environ.setdefault("RAY_worker_niceness", "0")
# No name is looked up on a model hub, for which Hugging Face's client would wait half a minute in
# vain.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from milp_ray.data.records import Sample, UserSplit  # noqa: E402

if TYPE_CHECKING:
    from milp_ray.model.base import BaseModel

TINY_NAMES = ("llama", "gpt2", "roberta")
TINY_LAYERS = 12  # enough for layer 1 and layer 11 to be confused
SHALLOW_LAYERS = 4  # for whole processes: a step then costs next to nothing beside starting them
_PHRASE = "my old dog likes long walks but the cat would rather sleep near a warm stove all day"
_WORDS = _PHRASE.split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first: side by side with others, none is left at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real users and the small trained model; tests that need it are skipped
    without it."""
    folder = Path(os.environ.get("MILP_RAY_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "models" / "tiny-base" / "config.json").is_file():
        pytest.skip("no folder of real data: set MILP_RAY_SHARED to it")
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny models with random weights and a byte-level tokenizer: llama, gpt2 and
    roberta."""
    import torch

    root = tmp_path_factory.mktemp("models")
    tokenizer = byte_tokenizer()
    folders = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in TINY_NAMES:
            folders[name] = _saved(root / name, name, tokenizer, TINY_LAYERS)
    return folders


@pytest.fixture(scope="session")
def shallow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama of few layers, for tests of whole processes and groups of
    workers."""
    import torch

    folder = tmp_path_factory.mktemp("models") / "shallow"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _saved(folder, "llama", byte_tokenizer(), SHALLOW_LAYERS)


@pytest.fixture(scope="session")
def load_tiny(tiny_models: dict[str, Path]) -> Callable[[str], BaseModel]:
    """Loads one of the tiny models as a base, afresh each time."""
    from milp_ray.config.models import ModelSettings
    from milp_ray.model.base import load_base

    return lambda name: load_base(ModelSettings(path=str(tiny_models[name]), device="cpu"))


@pytest.fixture(scope="session")
def tiny_bases(load_tiny: Callable[[str], BaseModel]) -> dict[str, BaseModel]:
    """The tiny models as resident bases, shared by all tests: every test must give them back as
    they were."""
    return {name: load_tiny(name) for name in TINY_NAMES}


@pytest.fixture
def llama(tiny_bases: dict[str, BaseModel]) -> BaseModel:
    """The tiny Llama with an empty token cache."""
    base = tiny_bases["llama"]
    base.token_cache.clear()
    return base


@pytest.fixture(scope="session")
def tiny_user() -> UserSplit:
    """A user with texts of very different lengths."""
    history = tuple(_text(seed, 2 + seed % 9) for seed in range(14))
    samples = tuple(
        Sample(_text(seed, 1 + 3 * (seed % 4)), _text(2 * seed, 2 + seed % 5), n_hist=8 + seed // 2)
        for seed in range(10)
    )
    return UserSplit("u-" + "a" * 13, history, samples[:5], samples[5:8], samples[8:], 10, 12)


@contextlib.contextmanager
def _server(program: str, *words: str) -> Iterator[str]:
    """Host and port of a server on 127.0.0.1; ``{port}`` in its words is the port."""
    place = Path(sys.prefix) / "stores" / "bin" / program
    if not place.exists():
        pytest.skip(f"no object store for tests at {place}: make install puts it there")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(place), *(word.format(port=port) for word in words)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert server.poll() is None and time.monotonic() < deadline, f"{program} did not start"
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of an S3 server (moto); it has an environment of its own, made by `make
    install`."""
    with _server("moto_server", "-H", "127.0.0.1", "-p", "{port}") as place:
        yield f"http://{place}"


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
    """Host and port of a server that speaks Google Cloud Storage's protocol, with a bucket
    ``bucket``."""
    words = ("start", "--host=127.0.0.1", "--port={port}", "--in-memory", "--default-bucket=bucket")
    with _server("gcp-storage-emulator", *words) as place:
        yield place


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, own_mirrors: None) -> str:
    """The URL of a fresh bucket; this process and its children find the server as they would find
    MinIO."""
    settings = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    bucket = f"runs-{secrets.token_hex(6)}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/{bucket}", method="PUT")).close()
    return f"s3://{bucket}"


@pytest.fixture
def entered() -> Iterator[Path]:
    """A folder that everybody may enter, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        if not all(above.stat().st_mode & 0o1 for above in Path(folder).resolve().parents):
            pytest.skip("the folder for temporary files is private itself")
        yield Path(folder)


@pytest.fixture
def own_mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mirrors of this test's own, gone with it."""
    from milp_ray.storage import close_mirrors

    monkeypatch.setenv("MILP_RAY_CACHE", str(tmp_path / "cache"))
    yield
    close_mirrors()


def _text(seed: int, words: int) -> str:
    return " ".join(_WORDS[(seed * 5 + 3 * index) % len(_WORDS)] for index in range(words))


def byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(_WORDS)] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=128
    )


def saved_tiny(folder: Path, name: str, layers: int) -> Path:
    """The folder of a tiny model of so many layers, drawn from torch's global random numbers."""
    return _saved(folder, name, byte_tokenizer(), layers)


def _saved(folder: Path, name: str, tokenizer: Any, layers: int) -> Path:
    """The folder, with a tiny model and its tokenizer in it."""
    _tiny_model(name, len(tokenizer), layers).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tiny_model(name: str, vocabulary: int, layers: int) -> Any:
    import torch
    from transformers import GPT2Config, LlamaConfig, RobertaConfig
    from transformers import GPT2LMHeadModel as Gpt2
    from transformers import LlamaForCausalLM as Llama
    from transformers import RobertaForCausalLM as Roberta

    common: dict[str, Any] = {
        "vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "initializer_range": 0.2,
    }  # fmt: skip
    if name == "gpt2":
        return Gpt2(GPT2Config(n_embd=32, n_inner=48, n_layer=layers, n_head=2, n_positions=128, **common))
    common |= {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
    }
    if name == "llama":
        return Llama(LlamaConfig(max_position_embeddings=128, **common))
    common["pad_token_id"] = (
        1  # as released: <s> is 0 and <pad> 1; here the tokenizer's ids differ on purpose
    )
    # is_decoder stays unset, as in the released checkpoints: load_base has to set it.
    model = Roberta(
        RobertaConfig(
            max_position_embeddings=130, **common | {"initializer_range": 0.1, "tie_word_embeddings": False}
        )
    )
    # Normalised after every layer, a small random RoBERTa says one token for ever; these make it
    # speak.
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) or module is model.lm_head.decoder:
            torch.nn.init.normal_(module.weight)
    return model
