from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from milp_ray.config.models import PromptSettings
from milp_ray.data.prompts import EncodedSample, Prompts
from milp_ray.data.records import Sample
from milp_ray.errors import ModelError

TEXTS = ["User: what of it?\nResponse: hello there, my good friend", "History: a day at the sea"] * 5
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
PLAIN = Prompts(PromptSettings())


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """Byte-level like GPT-2's; "metaspace": a space before each text, like Llama-2's; all cover all
    bytes."""
    texts = TEXTS
    if kind == "metaspace":
        core = Tokenizer(models.BPE(byte_fallback=True))
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        alphabet = [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=["<s>", "</s>", *alphabet], show_progress=False
        )
    else:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "merging")
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        if kind == "merging":  # its merges lead from "<", "/", "s", ">" to the end token itself
            texts = ["</s>", "<s>"] * 50
    core.train_from_iterator(texts, trainer)
    content = json.loads(core.to_str())
    content["added_tokens"] = content["added_tokens"][:2]  # bytes are ordinary tokens
    core = Tokenizer.from_str(json.dumps(content))
    if kind == "one end":
        return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="</s>", eos_token="</s>")
    if kind == "no start":
        return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


KINDS = ["plain", "one end", "no start", "metaspace"]
text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60) | st.sampled_from(
    ["</s>", "a </s> b <s>", " two  spaces ", "word " * 60, "hello there", "\n\nResponse: no"]
)
samples = st.builds(Sample, text, text, st.none() | text)


def test_texts() -> None:
    assert PLAIN.history("a {b}") == "History: a {b}"
    assert PLAIN.query(Sample("q {x}", "r")) == "q {x}"
    assert PLAIN.query(Sample("q", "r", "c")) == "q\nc"
    assert PLAIN.prompt(Sample("q", "r {response}", "c")) == "User: q\nc\nResponse: "
    other = Prompts(PromptSettings(instruction="{{Q}} {query} -> {response}"))
    assert other.prompt(Sample("{response}", "r")) == "{Q} {response} -> "


@pytest.mark.parametrize("kind", [*KINDS, "merging"])
@settings(max_examples=60, deadline=None)
@given(sample=samples, max_length=st.integers(16, 80))
def test_encoded_samples(kind: str, sample: Sample, max_length: int) -> None:
    tokenizer = tokenizer_of(kind)
    prompts = Prompts(PromptSettings(max_length=max_length))
    encoded = prompts.encode_sample(tokenizer, sample)
    ids, start = encoded.input_ids, encoded.prompt_length
    assert len(ids) <= max_length
    assert start <= max_length - max_length // 2
    assert ids[:start] == prompts.encode_prompt(tokenizer, sample)
    # The prompt does not depend on the response: what is trained on is what is generated from.
    assert ids[:start] == prompts.encode_prompt(tokenizer, Sample(sample.query, "x", sample.context))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    inner = ids if bos is None else ids[1:]
    assert bos is None or ids[0] == bos
    if ids[-1] == eos:
        inner = inner[:-1]
    else:
        assert len(ids) == max_length  # only a cut response has no end
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(inner)


@pytest.mark.parametrize("kind", [*KINDS, "merging"])
@settings(max_examples=40, deadline=None)
@given(sample=samples, history=text)
def test_uncut_texts_survive_whole(kind: str, sample: Sample, history: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompts = Prompts(PromptSettings(max_length=5000))
    encoded = prompts.encode_sample(tokenizer, sample)
    ends = 0 if tokenizer.bos_token_id is None else 1
    decode = tokenizer.backend_tokenizer.decode
    whole = prompts.prompt(sample) + sample.response
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    assert decode(encoded.input_ids[ends:-1], skip_special_tokens=False).strip() == whole.strip()
    ids = prompts.encode_history(tokenizer, history)
    assert decode(ids[ends:-1], skip_special_tokens=False).strip() == prompts.history(history).strip()


@pytest.mark.parametrize("kind", KINDS)
def test_the_border_is_tokenized_as_running_text(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    encoded = PLAIN.encode_sample(tokenizer, Sample("what of it?", "hello there"))
    start = 0 if tokenizer.bos_token_id is None else 1
    running = tokenizer.encode("User: what of it?\nResponse: hello there", add_special_tokens=False)
    assert encoded.input_ids[start:-1] == running
    assert tokenizer.decode(encoded.input_ids[encoded.prompt_length : -1]).strip() == "hello there"


def test_a_merge_over_the_border_does_not_reach_into_the_prompt() -> None:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([": hi"] * 50, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    assert len(tokenizer.encode(": hi", add_special_tokens=False)) == 1
    encoded = PLAIN.encode_sample(tokenizer, Sample("a", "hi"))
    assert tokenizer.decode(encoded.input_ids[: encoded.prompt_length]) == "<s>User: a\nResponse:"
    assert tokenizer.decode(encoded.input_ids[encoded.prompt_length :]) == " hi</s>"


def test_long_history_keeps_its_newest_tokens() -> None:
    tokenizer = tokenizer_of("plain")
    words = " ".join(str(i) for i in range(500))
    ids = Prompts(PromptSettings(max_length=40)).encode_history(tokenizer, words)
    assert len(ids) == 40
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert words.endswith(tokenizer.decode(ids[1:-1]))
    short = PLAIN.encode_history(tokenizer, "a day")
    assert tokenizer.decode(short) == "<s>History: a day</s>"


def test_long_samples_keep_the_end_of_the_prompt_and_the_head_of_the_response() -> None:
    tokenizer = tokenizer_of("plain")
    query, response = (" ".join(f"{letter}{i}" for i in range(300)) for letter in "qr")
    encoded = Prompts(PromptSettings(max_length=61)).encode_sample(tokenizer, Sample(query, response))
    assert (len(encoded.input_ids), encoded.prompt_length) == (61, 31)
    prompt = tokenizer.decode(encoded.input_ids[1:31])
    assert f"User: {query}\nResponse:".endswith(prompt)
    assert f" {response}".startswith(tokenizer.decode(encoded.input_ids[31:]))
    assert encoded.input_ids[-1] != tokenizer.eos_token_id


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_planted_control_tokens_are_plain_text(style: str) -> None:
    tokenizer = chat_tokenizer() if style == "chat" else tokenizer_of("plain")
    prompts = Prompts(PromptSettings(style=style))  # type: ignore[arg-type]
    clean = prompts.encode_sample(tokenizer, Sample("a", "b", "c")).input_ids
    planted = prompts.encode_sample(tokenizer, Sample("a</s><s>", "</s>b<s>", "<s>c</s>")).input_ids
    for control in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        assert planted.count(control) == clean.count(control)
    history = prompts.encode_history(tokenizer, "</s>a</s>")
    assert history.count(tokenizer.eos_token_id) == 1


def chat_tokenizer(template: str | None = CHAT) -> PreTrainedTokenizerFast:
    core = Tokenizer.from_str(tokenizer_of("plain").backend_tokenizer.to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


CHAT_PROMPTS = Prompts(PromptSettings(style="chat", max_length=64))


def test_chat_template_frames_the_sample() -> None:
    tokenizer = chat_tokenizer()
    sample = Sample("what of it?", "hello there", "a day")
    turns = [{"role": "user", "content": "what of it?\na day"}]
    encoded = CHAT_PROMPTS.encode_sample(tokenizer, sample)
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(encoded.input_ids[: encoded.prompt_length]) == prompt
    assert tokenizer.decode(encoded.input_ids) == f"{prompt}hello there</s>"
    assert CHAT_PROMPTS.encode_prompt(tokenizer, sample) == encoded.input_ids[: encoded.prompt_length]
    assert CHAT_PROMPTS.encode_history(tokenizer, "a day") == PLAIN.encode_history(tokenizer, "a day")


@settings(max_examples=40, deadline=None)
@given(samples)
def test_a_cut_chat_prompt_keeps_the_whole_template(sample: Sample) -> None:
    tokenizer = chat_tokenizer()
    encoded = CHAT_PROMPTS.encode_sample(tokenizer, sample)
    prompt = tokenizer.decode(encoded.input_ids[: encoded.prompt_length])
    assert prompt.startswith("<s>user\n")
    assert prompt.endswith("</s>\n<s>assistant\n")
    assert encoded.prompt_length <= 32
    assert len(encoded.input_ids) <= 64


def test_what_a_template_puts_before_the_response_is_generated_too() -> None:
    """A server begins to generate where the generation prompt ends, not where the response does."""
    tokenizer = chat_tokenizer(
        "{% for m in messages %}{{ m.role }}:{{ '<think></think>' if m.role == 'assistant' }}"
        "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    encoded = CHAT_PROMPTS.encode_sample(tokenizer, Sample("q", "r"))
    assert tokenizer.decode(encoded.input_ids[: encoded.prompt_length]) == "user:q</s>assistant:"
    assert tokenizer.decode(encoded.input_ids[encoded.prompt_length :]) == "<think></think>r</s>"


BAD_TEMPLATES = {
    "none": (None, "has no chat template"),
    "raises": ("{{ raise_exception('no') }}", r"cannot be rendered \(TemplateError: no\)"),
    "is cut": (
        "{% for m in messages %}{{ m.content",
        "TemplateSyntaxError: unexpected",
    ),
    "raises what a user wrote": (
        "{% if 'canary' in messages[0].content %}{{ raise_exception(messages[0].content) }}{% endif %}"
        "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
        r"cannot be rendered \(TemplateError\)",
    ),
    "drops the response": ("{{ messages[0].content }}", "once each"),
    "no common prefix": (
        "{% for m in messages %}{{ m.content }};{% endfor %}{% if add_generation_prompt %}BOT:{% endif %}",
        "unlike",
    ),
    "too long": ("x " * 100 + CHAT, "template alone takes"),
}


@pytest.mark.parametrize("template, fact", BAD_TEMPLATES.values(), ids=BAD_TEMPLATES.keys())
def test_unusable_chat_templates(template: str | None, fact: str) -> None:
    with pytest.raises(ModelError, match=fact) as caught:
        CHAT_PROMPTS.encode_prompt(chat_tokenizer(template), Sample("canary", "r"))
    assert "prompts.style: plain" in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_tokenizer_without_end_token_is_refused() -> None:
    core = Tokenizer.from_str(tokenizer_of("plain").backend_tokenizer.to_str())
    with pytest.raises(ModelError, match="no end token"):
        PLAIN.encode_history(PreTrainedTokenizerFast(tokenizer_object=core), "a")


def test_reprs_show_lengths_only() -> None:
    assert repr(EncodedSample([5, 6, 7], 2)) == "EncodedSample(tokens=3, prompt_length=2)"


def test_real_tokenizer(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "tiny-base")
    encoded = PLAIN.encode_sample(tokenizer, Sample("My head hurts.", "Since when?"))
    # The shape it was trained on, as its own tokenizer encodes it in one go.
    whole = tokenizer.encode("User: My head hurts.\nResponse: Since when?", add_special_tokens=False)
    assert encoded.input_ids == [tokenizer.bos_token_id, *whole, tokenizer.eos_token_id]
    assert tokenizer.decode(encoded.input_ids[encoded.prompt_length :]) == " Since when?</s>"
