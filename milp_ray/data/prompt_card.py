"""What stands beside a memory: its exact prompt, for whoever serves it elsewhere.

``prompt.json`` is for programs, ``PROMPT.md`` says the same to people, and ``chat_template.jinja``
is there where a server needs another template than the model's own. The example is made up; nothing
is a user's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT, README, TEMPLATE = "prompt.json", "PROMPT.md", "chat_template.jinja"
_EXAMPLE = Sample("What shall I bring on Sunday?", "The blue kettle, and a jar of plums.")


def prompt_card(tokenizer: PreTrainedTokenizerBase, prompts: Prompts) -> dict[str, bytes]:
    """The files by name.

    Args:
        tokenizer: of the base model.
        prompts: that the memory is trained on.

    Raises:
        ModelError: the tokenizer has no end token, or (style chat) no usable chat template.
    """
    facts = _facts(tokenizer, prompts)
    files = {PROMPT: json.dumps(facts, indent=1, ensure_ascii=False), README: _readme(facts)}
    chat = prompts.chat(tokenizer)
    if chat is not None and (template := chat.served_template()):
        files[TEMPLATE] = template
    return {name: text.encode() for name, text in files.items()}


def _facts(tokenizer: PreTrainedTokenizerBase, prompts: Prompts) -> dict[str, Any]:
    settings, chat = prompts.settings, prompts.chat(tokenizer)
    encoded = prompts.encode_sample(tokenizer, _EXAMPLE)
    ids, response = encoded.input_ids[: encoded.prompt_length], encoded.input_ids[encoded.prompt_length :]
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    facts: dict[str, Any] = {
        "style": settings.style,
        "begins_with_bos": bool(ids) and ids[0] == tokenizer.bos_token_id,
        "stop": [
            {"id": token, "token": tokenizer.convert_ids_to_tokens(token)}
            for token in sorted(prompts.stop_ids(tokenizer))
        ],
        "max_prompt_tokens": settings.max_length - settings.max_length // 2,
        "context_phrase": settings.context,
    }
    if settings.style == "plain":
        sent = prompts.prompt(_EXAMPLE).rstrip(" ")
        facts["phrase"] = settings.instruction.removesuffix("{response}").rstrip(" ")
        facts["tokenizer_adds_bos"] = list(tokenizer(sent)["input_ids"]) == ids
    elif chat is not None:
        facts |= {"chat_template_kwargs": chat.kwargs, "own_chat_template": bool(chat.served_template())}
        facts["date"] = str(settings.date) if chat.reads_clock and settings.date else None
    facts["example"] = {
        "query": _EXAMPLE.query,
        "prompt": text,
        "prompt_token_ids": ids,
        "response": tokenizer.decode(response, skip_special_tokens=False, clean_up_tokenization_spaces=False),
        "response_token_ids": response,
    }
    return facts


def _readme(facts: dict[str, Any]) -> str:
    example = facts["example"]
    stop = ", ".join(f"`{one['token']}` ({one['id']})" for one in facts["stop"])
    lines = [
        "# The prompt of this memory",
        "",
        "The base model with this adapter answers as it was trained to when it gets exactly these tokens; "
        f"`{PROMPT}` beside this file has the same for programs. The example is made up.",
        "",
        *(_plain_rules(facts) if facts["style"] == "plain" else _chat_rules(facts)),
        f"- A response ends with {stop}: stop there (`stop_token_ids`).",
        f"- Prompts of more than {facts['max_prompt_tokens']} tokens were cut at the beginning in training.",
        "- Greedy decoding is what it was measured with.",
        "",
        "The prompt, for the query " + json.dumps(example["query"]) + ":",
        "",
        *_fenced(example["prompt"]),
        "",
        *_fenced(json.dumps(example["prompt_token_ids"])),
        "",
        "What was trained to follow (the loss is taken on it):",
        "",
        *_fenced(example["response"]),
        "",
        *_fenced(json.dumps(example["response_token_ids"])),
    ]
    return "\n".join(lines) + "\n"


def _plain_rules(facts: dict[str, Any]) -> list[str]:
    rules = [f"- Plain phrase, no chat template: {json.dumps(facts['phrase'], ensure_ascii=False)}."]
    rules.append("- No blank at the end: the response begins with it. With one the model sees other tokens.")
    if not facts["begins_with_bos"]:
        rules.append("- No start token: the vocabulary has none.")
    elif facts["tokenizer_adds_bos"]:
        rules.append("- It begins with the start token, which the tokenizer adds by itself: do not write it.")
    else:
        rules.append(
            "- It begins with the start token, which this tokenizer does NOT add: send the token ids, or "
            "write it before the text."
        )
    return rules


def _chat_rules(facts: dict[str, Any]) -> list[str]:
    rules = ["- One user turn in the base model's chat template, with the generation prompt; no system turn."]
    if facts.get("own_chat_template"):
        rules.append(
            f"- Serve it with `{TEMPLATE}` of this folder in place of the model's own (vLLM: "
            "`--chat-template`): date and thinking are decided in it."
        )
    elif kwargs := facts.get("chat_template_kwargs"):
        rules.append(f"- Give the template these arguments: `chat_template_kwargs`: `{json.dumps(kwargs)}`.")
    else:
        rules.append("- No arguments for the template (`chat_template_kwargs`).")
    if date := facts.get("date"):
        rules.append(f"- The template writes the date; in training it was {date}.")
    rules.append(
        "- The start token comes with the template: do not let the tokenizer add another "
        "(`add_special_tokens=False`)."
        if facts["begins_with_bos"]
        else "- No start token before it (`add_special_tokens=False`)."
    )
    return rules


def _fenced(text: str) -> list[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence, text, fence]
