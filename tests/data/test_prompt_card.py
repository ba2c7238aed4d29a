"""What stands beside a memory makes a server's prompt out of the base model's own tokenizer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from milp_ray.config.models import PromptSettings
from milp_ray.data.prompt_card import prompt_card
from milp_ray.data.prompts import Prompts
from tests.data.chat_families import TEMPLATES
from tests.data.test_chat_template import DAY, KINDS, chat_prompts, tokenizer_of


def card(tokenizer: Any, prompts: Prompts) -> tuple[dict[str, Any], str, str]:
    files = {name: content.decode() for name, content in prompt_card(tokenizer, prompts).items()}
    return json.loads(files["prompt.json"]), files["PROMPT.md"], files.get("chat_template.jinja", "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("thinking", ["template", "off"])
@pytest.mark.parametrize("family", sorted(TEMPLATES.keys() - {"deepseek r1"}))
def test_a_server_that_is_told_so_makes_the_example(kind: str, thinking: str, family: str) -> None:
    tokenizer = tokenizer_of(kind, TEMPLATES[family])
    facts, text, template = card(tokenizer, chat_prompts(thinking=thinking))
    tokenizer.chat_template = template or TEMPLATES[family]
    arguments = {} if template else facts["chat_template_kwargs"]
    example = facts["example"]
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": example["query"]}],
        add_generation_prompt=True,
        return_dict=False,
        **arguments,
    )
    assert list(ids) == example["prompt_token_ids"]
    assert example["response_token_ids"][-1] == facts["stop"][0]["id"]
    assert json.dumps(example["prompt_token_ids"]) in text and facts["stop"][0]["token"] in text
    assert bool(template) == (family in ("llama3.2", "mistral small 3", "gpt-oss")) == bool(facts["date"])
    assert not template or str(DAY) in text


def test_a_block_that_is_closed_by_hand_stands_in_the_memorys_own_template() -> None:
    tokenizer = tokenizer_of("byte-level", TEMPLATES["deepseek r1"])
    facts, text, template = card(tokenizer, chat_prompts(thinking="off"))
    turn = [{"role": "user", "content": facts["example"]["query"]}]
    ids = tokenizer.apply_chat_template(
        turn, chat_template=template, add_generation_prompt=True, return_dict=False
    )
    assert list(ids) == facts["example"]["prompt_token_ids"]
    assert "`chat_template.jinja`" in text
    closed = tokenizer.apply_chat_template(turn, chat_template=template, tokenize=False)
    assert "think" not in closed, "only where a response is to be generated"


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_phrase_is_said_with_start_token_and_without_blank(kind: str) -> None:
    tokenizer = tokenizer_of(kind, "")
    prompts = Prompts(PromptSettings(instruction="Q: {query}\nA: {response}"))
    facts, text, template = card(tokenizer, prompts)
    example = facts["example"]
    assert facts["phrase"] == "Q: {query}\nA:" and not template
    assert facts["begins_with_bos"] and not facts["tokenizer_adds_bos"] and "does NOT add" in text
    sent = facts["phrase"].format(query=example["query"])
    assert [tokenizer.bos_token_id, *tokenizer(sent)["input_ids"]] == example["prompt_token_ids"]
    assert example["response_token_ids"][-1] == tokenizer.eos_token_id == facts["stop"][0]["id"]
