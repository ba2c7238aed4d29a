"""Chat prompts are those of ``apply_chat_template``, token for token, on small vocabularies of each
kind."""

from __future__ import annotations

import datetime
import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from milp_ray.config.models import PromptSettings
from milp_ray.data.chat_template import ChatTemplate
from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample
from milp_ray.errors import ModelError
from tests.data.chat_families import TEMPLATES

TEXTS = [
    "Hello",
    "I am fine.\n",
    "  on both sides  ",
    "\nnew\n\nlines\n",
    "你好,世界",
    "नमस्ते दुनिया",
    "🙂 ok",
    "'s it",
    "\n",
]
DAY = datetime.date(2026, 1, 2)
CORPUS = ["[INST] what of it? [/INST] hello there, my good friend", "user\nassistant\n model USER: a day"] * 9
FLAGGED = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"]
UNFLAGGED = ["<think>", "</think>", "<｜User｜>", "<｜Assistant｜>", "friend", "\n\n"]


@cache
def vocabulary(kind: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE; Metaspace, with a blank before every text or the first one only; and the
    older SentencePiece files, whose normalizer puts it before every piece between control
    tokens."""
    if kind == "byte-level":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet, more = pre_tokenizers.ByteLevel.alphabet(), []
    else:
        core = Tokenizer(models.BPE(byte_fallback=True))
        if kind == "legacy":
            core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet, more = [], [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>", "</s>", *more], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    content = json.loads(core.to_str())
    content["added_tokens"] = content["added_tokens"][:2]  # bytes are ordinary tokens
    core = Tokenizer.from_str(json.dumps(content))
    core.add_special_tokens([AddedToken(text, special=True, rstrip=text == "<|end|>") for text in FLAGGED])
    core.add_tokens([AddedToken(text, special=False, normalized=False) for text in UNFLAGGED])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


KINDS = ["byte-level", "always", "first", "legacy"]
OPEN = "deepseek r1"  # opens a thinking block for every response


def tokenizer_of(kind: str, template: str) -> PreTrainedTokenizerFast:
    tokenizer = vocabulary(kind)
    tokenizer.chat_template = template
    return tokenizer


def chat_prompts(**more: Any) -> Prompts:
    return Prompts(PromptSettings(**{"style": "chat", "max_length": 4000, "date": DAY, **more}))


def served(tokenizer: Any, prompts: Prompts, *texts: str) -> list[int]:
    """What a server makes of a query, or a query and its response, with what a memory's folder
    tells it."""
    chat = prompts.chat(tokenizer)
    assert chat is not None
    turns = [
        {"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=False)
    ]
    template = chat.served_template()
    more = {"chat_template": template} if template else chat.kwargs
    return list(
        tokenizer.apply_chat_template(turns, add_generation_prompt=len(texts) == 1, return_dict=False, **more)
    )


def assert_as_served(tokenizer: Any, prompts: Prompts, query: str, response: str) -> None:
    """The prompt is the server's; so is what follows, where no merge reaches over the border."""
    encoded = prompts.encode_sample(tokenizer, Sample(query, response))
    ids, start = encoded.input_ids, encoded.prompt_length
    assert ids[:start] == served(tokenizer, prompts, query)
    assert ids[:start] == prompts.encode_prompt(tokenizer, Sample(query, "another"))
    chat = prompts.chat(tokenizer)
    assert chat is not None
    whole = served(tokenizer, prompts, query, response)
    if not chat.end:
        assert ids[-1] == tokenizer.eos_token_id
    elif not chat.closing and whole[:start] == ids[:start]:
        assert ids == whole[: len(ids)]
        assert ids[start:].count(chat.control.id_of(chat.end)) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("thinking", ["template", "off"])
@pytest.mark.parametrize("family", TEMPLATES)
def test_prompts_are_those_of_the_template(kind: str, thinking: str, family: str) -> None:
    tokenizer, prompts = tokenizer_of(kind, TEMPLATES[family]), chat_prompts(thinking=thinking)
    if family == OPEN and thinking == "template":
        with pytest.raises(ModelError, match="opens a thinking block"):
            prompts.chat(tokenizer)
        return
    for number, query in enumerate(TEXTS):
        assert_as_served(tokenizer, prompts, query, TEXTS[-number - 1])


anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [*FLAGGED, *UNFLAGGED, "a <think> b</think> c", "</s>\n<s>", "<｜User｜>x", "milpQuery7f3a", "a friend"]
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["mistral 0.1", "llama2", "qwen3", "deepseek v3", "phi 3"])
@settings(max_examples=30, deadline=None)
@given(query=anything, response=anything)
def test_users_write_no_control_token(kind: str, family: str, query: str, response: str) -> None:
    tokenizer, prompts = tokenizer_of(kind, TEMPLATES[family]), chat_prompts()
    chat = prompts.chat(tokenizer)
    assert chat is not None
    encoded, clean = (
        prompts.encode_sample(tokenizer, sample) for sample in (Sample(query, response), Sample("q", "r"))
    )
    assert chat.control.among(encoded.input_ids) == chat.control.among(clean.input_ids)
    if not chat.control.spelled(query + "\0" + response):
        assert_as_served(tokenizer, prompts, query, response)
    plain = Prompts(PromptSettings(max_length=4000)).encode_sample(tokenizer, Sample(query, response))
    assert chat.control.among(plain.input_ids) == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_a_spelled_control_token_is_there_as_plain_characters() -> None:
    for kind in KINDS:
        tokenizer = tokenizer_of(kind, TEMPLATES["mistral 0.1"])
        encoded = chat_prompts().encode_sample(tokenizer, Sample("say </s> or <think> twice", "</s> it is"))
        text = "<s>[INST] say </s> or <think> twice [/INST]</s> it is</s>"
        assert tokenizer.decode(encoded.input_ids).replace(" ", "") == text.replace(" ", "")
        assert encoded.input_ids.count(tokenizer.eos_token_id) == 1


def test_the_tokens_of_every_template_are_control_tokens_in_plain_texts() -> None:
    """Some tokenizers have several templates (tools, documents), and none that is the default
    one."""
    tokenizer = tokenizer_of("byte-level", TEMPLATES["chatml"])
    plain, sample = Prompts(PromptSettings()), Sample("<think>", "r")
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert think in plain.encode_prompt(tokenizer, sample)
    tokenizer.chat_template = {"tool_use": TEMPLATES["chatml"], "reasoning": TEMPLATES["qwen3"]}
    assert think not in Prompts(PromptSettings()).encode_prompt(tokenizer, sample)
    with pytest.raises(ModelError, match="without a default"):
        chat_prompts().encode_prompt(tokenizer, sample)


def test_words_and_blanks_that_a_vocabulary_adds_are_no_control_tokens() -> None:
    tokenizer = tokenizer_of("byte-level", "friend\n\n" + TEMPLATES["deepseek v3"])
    control = ChatTemplate(tokenizer).control
    assert not control.spelled("a friend\n\n")
    assert control.spellings("<｜User｜></s>") == ["<｜User｜>", "</s>"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_query_is_served_as_the_rest_of_it(kind: str) -> None:
    tokenizer = tokenizer_of(kind, TEMPLATES["llama2"])
    prompts = chat_prompts(max_length=160)
    query = " ".join(f"word{i}," for i in range(200))
    ids = prompts.encode_prompt(tokenizer, Sample(query, "r"))
    assert 60 < len(ids) <= 80
    rests = (query[at:] for at in range(len(query)))
    assert any(ids == served(tokenizer, prompts, rest) for rest in rests if len(rest) < len(ids) * 4)


def test_the_end_of_a_turn_is_the_first_control_token_after_the_response() -> None:
    ends = {"llama3": "<|eot_id|>", "phi 3": "<|end|>", "gemma": "<end_of_turn>", "qwen3": "<|im_end|>"}
    for family, end in ends.items():
        tokenizer, prompts = tokenizer_of("byte-level", TEMPLATES[family]), chat_prompts()
        encoded = prompts.encode_sample(tokenizer, Sample("q", "r"))
        token = tokenizer.convert_tokens_to_ids(end)
        assert encoded.input_ids[-1] == token != tokenizer.eos_token_id
        assert encoded.input_ids[encoded.prompt_length :].count(token) == 1
        assert prompts.stop_ids(tokenizer) == {token}


@pytest.mark.parametrize("family", ["glm 4", "command r"])
def test_without_a_control_token_there_the_end_token_ends_a_turn(family: str) -> None:
    tokenizer, prompts = tokenizer_of("byte-level", TEMPLATES[family]), chat_prompts()
    encoded = prompts.encode_sample(tokenizer, Sample("q", "the response"))
    assert tokenizer.decode(encoded.input_ids[encoded.prompt_length :]) == "the response</s>"
    assert prompts.stop_ids(tokenizer) == {tokenizer.eos_token_id}
    assert "no control token" in prompts.notes(tokenizer)[0]


@pytest.mark.parametrize("family", ["llama3.2", "mistral small 3", "gpt-oss"])
def test_the_clock_of_a_template_stands_still(family: str) -> None:
    tokenizer = tokenizer_of("byte-level", TEMPLATES[family])
    days = [chat_prompts(date=DAY + datetime.timedelta(more)) for more in (0, 0, 1)]
    one, same, other = (prompts.encode_prompt(tokenizer, Sample("q", "r")) for prompts in days)
    assert one == same != other
    text = tokenizer.decode(one)
    assert "02 Jan 2026" in text or "2026-01-02" in text
    assert any("writes the date" in note and "2026-01-02" in note for note in days[0].notes(tokenizer))


def test_templates_that_do_not_write_the_date_are_not_said_to() -> None:
    for family in TEMPLATES.keys() - {"llama3.2", "mistral small 3", "gpt-oss", OPEN}:
        assert not ChatTemplate(tokenizer_of("byte-level", TEMPLATES[family])).reads_clock
    mentioned = "{% if false %}{{ strftime_now('%Y') }}{% endif %}" + TEMPLATES["chatml"]
    assert not ChatTemplate(tokenizer_of("byte-level", mentioned)).reads_clock


def test_a_clock_that_cannot_be_stopped_is_refused() -> None:
    hidden = "{{ strftime_now('%' ~ 'Y') }}" + TEMPLATES["chatml"]
    with pytest.raises(ModelError, match="reads the clock"):
        ChatTemplate(tokenizer_of("byte-level", hidden))


def test_thinking_is_as_it_is_served_by_default_or_switched_off() -> None:
    tokenizer = tokenizer_of("byte-level", TEMPLATES["qwen3"])
    default, off = chat_prompts(), chat_prompts(thinking="off")
    encoded = default.encode_sample(tokenizer, Sample("q", "r"))
    assert tokenizer.decode(encoded.input_ids).endswith("<think>\n\n</think>\n\nr<|im_end|>")
    assert tokenizer.decode(encoded.input_ids[: encoded.prompt_length]).endswith("assistant\n")
    closed = off.encode_sample(tokenizer, Sample("q", "r"))
    assert closed.input_ids == encoded.input_ids
    assert tokenizer.decode(closed.input_ids[closed.prompt_length :]) == "r<|im_end|>"
    assert any("prompts.thinking: off" in note for note in default.notes(tokenizer))
    assert any("{'enable_thinking': False}" in note for note in off.notes(tokenizer))


def test_an_open_block_is_closed_only_on_request() -> None:
    tokenizer = tokenizer_of("byte-level", TEMPLATES[OPEN])
    with pytest.raises(ModelError, match="opens a thinking block"):
        chat_prompts().encode_prompt(tokenizer, Sample("canary", "r"))
    off = chat_prompts(thinking="off")
    encoded = off.encode_sample(tokenizer, Sample("q", "r"))
    text = "<s><｜User｜>q<｜Assistant｜><think>\n\n</think>\n\nr</s>"
    assert tokenizer.decode(encoded.input_ids).replace("<｜end▁of▁sentence｜>", "") == text
    assert any("memory's own template" in note for note in off.notes(tokenizer))


def test_what_was_thought_is_no_part_of_a_response() -> None:
    tokenizer, prompts = tokenizer_of("byte-level", TEMPLATES["qwen3"]), chat_prompts()

    def read(text: str) -> str:
        return prompts.response_text(tokenizer, tokenizer.encode(text, add_special_tokens=False))

    assert read("<think>\nwhat of it\n</think>\n\na day <|im_end|>") == "a day"
    assert read("<think>\nwhat of it") == ""
    assert read(" a day") == "a day"
    tokenizer.chat_template = TEMPLATES["gpt-oss"]
    prompts = chat_prompts()
    assert read("<|channel|>final<|message|>a day") == "a day"
    plain = Prompts(PromptSettings())
    assert (
        plain.response_text(tokenizer, tokenizer.encode("<think> a day", add_special_tokens=False))
        == "<think> a day"
    )
