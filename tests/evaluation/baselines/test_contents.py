"""What prompts hold: no more than a sample may see, what is newest, what is like the query."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import pytest
import torch

from milp_ray.config.models import PromptSettings
from milp_ray.data.records import Sample, UserSplit
from milp_ray.errors import ModelError
from milp_ray.evaluation.baselines import make
from milp_ray.evaluation.baselines.contents import prompt_room
from milp_ray.evaluation.baselines.malp import Memories
from milp_ray.evaluation.baselines.rag_dense import SentenceEncoder
from milp_ray.model.base import BaseModel
from tests.evaluation.baselines.common import OPTIONS, STUDY, bench

TEXTS = ("the warm stove", "old dogs like walks", "a cat all day", "long walks", "later than all")
USER = UserSplit("u-" + "a" * 13, TEXTS, (), (), (), 2, 3, profile=(("name", "Kim"), ("site", "kennel")))


def shown(name: str, base: BaseModel, sample: Sample, folder: Path, **changed: object) -> str:
    method = make(name, bench(base, folder, **changed))
    [request] = method.requests(USER, [sample])
    return str(base.tokenizer.decode(request.ids))


def test_a_prompt_holds_the_profile_and_earlier_texts_the_newest_last(
    llama: BaseModel, tmp_path: Path
) -> None:
    assert shown("tplp", llama, Sample("which walks?", "ZQX", n_hist=4), tmp_path) == (
        "<s>name: Kim\nsite: kennel\nHistory: the warm stove\nHistory: old dogs like walks\n"
        "History: a cat all day\nHistory: long walks\nUser: which walks?\nResponse:"
    )
    assert "a cat" not in shown("tplp", llama, Sample("which?", "ZQX", n_hist=2), tmp_path)
    assert "long walks" not in shown("tplp", llama, Sample("which?", "ZQX"), tmp_path), "up to the first test"


def test_what_does_not_fit_is_the_oldest(llama: BaseModel, tmp_path: Path) -> None:
    here = bench(llama, tmp_path)
    room = prompt_room(here)
    assert room == 128 - 32
    user = dataclasses.replace(USER, history=tuple(f"the {i} day" for i in range(80)), profile=())
    asked = [Sample("which day?", "", n_hist=80), Sample("day " * 90, "", n_hist=80)]
    short, long = make("tplp", here).requests(user, asked)
    text = llama.tokenizer.decode(short.ids)
    assert room - 8 < len(short.ids) <= room
    assert "the 79 day\nUser: which day?" in text and "the 0 day" not in text
    kept = [int(word) for word in text.split() if word.isdigit()]
    assert kept == list(range(kept[0], 80))
    assert len(long.ids) <= room and llama.tokenizer.decode(long.ids).endswith("day \nResponse:")
    narrow = OPTIONS.model_copy(update={"max_prompt_tokens": 40})
    [bounded] = make("tplp", bench(llama, tmp_path, options=narrow)).requests(user, asked[:1])
    assert len(bounded.ids) <= 40


def test_found_texts_stand_with_the_best_last(llama: BaseModel, tmp_path: Path) -> None:
    found = shown("rag", llama, Sample("old walks?", "ZQX", n_hist=4), tmp_path)
    assert found == "<s>History: long walks\nHistory: old dogs like walks\nUser: old walks?\nResponse:"
    assert shown("rag", llama, Sample("zebra", "", n_hist=4), tmp_path) == shown(
        "none", llama, Sample("zebra", "", n_hist=4), tmp_path
    )


@pytest.mark.parametrize("name", ["tplp", "rag", "malp"])
def test_a_chat_template_has_them_in_the_users_turn(name: str, llama: BaseModel, tmp_path: Path) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    tokenizer = llama.tokenizer
    before = tokenizer.chat_template
    tokenizer.chat_template = template
    try:
        study = STUDY.model_copy(update={"prompts": PromptSettings(style="chat", max_length=64)})
        text = shown(name, llama, Sample("old walks?", "ZQX", n_hist=4), tmp_path, study=study)
    finally:
        tokenizer.chat_template = before
    assert text.startswith("[user]") and text.endswith("\n\nold walks?</s>[assistant]")
    assert "History: old dogs like walks" in text and "ZQX" not in text


def test_a_sentence_encoder_finds_what_is_like_the_query(
    llama: BaseModel, tiny_encoder: Path, tmp_path: Path
) -> None:
    options = OPTIONS.model_copy(update={"encoder": str(tiny_encoder), "retrieved": 2})
    sample = Sample(TEXTS[1], "ZQX", n_hist=4)
    found = shown("rag_dense", llama, sample, tmp_path, options=options)
    assert found.count("History:") == 2
    assert f"History: {TEXTS[1]}\nUser: {TEXTS[1]}" in found, "the same text is the most like it"
    encode = SentenceEncoder(tiny_encoder, torch.device("cpu"))
    together = encode(TEXTS)
    assert torch.allclose(together.norm(dim=1), torch.ones(len(TEXTS)))
    alone = SentenceEncoder(tiny_encoder, torch.device("cpu"))([TEXTS[2]])
    assert torch.allclose(alone[0], together[2], atol=1e-5), "padding changes nothing"


def test_a_packages_encoder_is_read_without_importing_it(
    llama: BaseModel, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="no sentence encoder"):
        make("rag_dense", bench(llama, tmp_path))
    package = tmp_path / "site" / "all_minilm_l6_v2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    with zipfile.ZipFile(package / "model.zip", "w") as packed:
        for file in tiny_encoder.iterdir():
            packed.write(file, file.name)
    monkeypatch.syspath_prepend(str(package.parent))
    assert make("rag_dense", bench(llama, tmp_path / "run")).requests(USER, [Sample("old?", "", n_hist=4)])
    broken = OPTIONS.model_copy(update={"encoder": str(tmp_path / "run")})
    with pytest.raises(ModelError, match=r"options\.encoder: names no sentence encoder"):
        make("rag_dense", bench(llama, tmp_path, options=broken))
    (tmp_path / "run" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="could not be loaded"):
        make("rag_dense", bench(llama, tmp_path, options=broken))


def words(*texts: str) -> list[tuple[str, ...]]:
    return [tuple(text.split()) for text in texts]


def test_what_is_spoken_of_again_and_again_is_promoted_and_kept() -> None:
    talk = words("dog walks", "a dog", "dog", "dog", *["unrelated " * n for n in range(1, 20)])
    memory = Memories(talk)
    assert 0 in memory.long_term and 0 not in memory.short_term
    assert 22 in memory.short_term and len(memory.short_term) == 16
    long, short = memory.retrieve(("dog",), 2)
    assert long and set(long) <= {0, 1, 2, 3} and short[0] == 22, "the newest is always there"
    assert Memories(words("dog walks", "a cat", "stove")).long_term == []


def test_a_query_finds_what_is_like_it() -> None:
    memory = Memories(words("warm stove", "old dogs", "long walks"))
    assert memory.retrieve(("stove",), 2) == ([], [2, 0])
    assert memory.retrieve(("zebra",), 2) == ([], [2])
    assert Memories([]).retrieve(("dog",), 4) == ([], [])
