"""Chat prompts are those of ``apply_chat_template`` on real tokenizers, with the templates of many
families.

The tokenizers are fetched by ``real_tokenizers.sh``; without them the tests are skipped. As a
program (``python -m tests.data.test_real_tokenizers FOLDER``) it prints the table of
docs/prompts.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, logging

from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample
from milp_ray.errors import ModelError
from tests.data.chat_families import TEMPLATES
from tests.data.test_chat_template import OPEN, assert_as_served, chat_prompts, served

NAMES = ("llama2", "llama3", "llama3_1", "qwen3", "deepseek_v3", "gemma3", "gptoss")
TEXTS = [
    "Hello", "I am fine.\n", "  leading and trailing  ", "\nnew\n\nline\n", "你好,世界 — ça va?", "a",
    "नमस्ते दुनिया", "مرحبا بالعالم", "def f(x):\n    return x # 'a' \"b\"\n", "Привет мир", "...", "🙂 ok",
    "tab\tand  two", "< / s > <p>", "word " * 30, "'s it", "\n", "1234567 + 89",
]  # fmt: skip
OWN = "its own"


def tokenizer_at(folder: Path) -> Any:
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.init_kwargs["own"] = tokenizer.chat_template
    return tokenizer


def families(tokenizer: Any) -> dict[str, str]:
    """Those that can be written with it: some templates begin with a start token, which Qwen
    lacks."""
    own = tokenizer.init_kwargs["own"]
    found = {**({OWN: own} if own else {}), **TEMPLATES}
    return {
        name: text
        for name, text in found.items()
        if tokenizer.bos_token is not None or "bos_token" not in text
    }


def compared(tokenizer: Any, prompts: Prompts) -> Iterator[tuple[bool, bool]]:
    """For every text: whether the prompt is the server's, and whether prompt and response are (but
    for an end token that the template does not have)."""
    chat = prompts.chat(tokenizer)
    assert chat is not None
    for number, query in enumerate(TEXTS):
        response = TEXTS[(number * 7 + 3) % len(TEXTS)]
        encoded = prompts.encode_sample(tokenizer, Sample(query, response))
        asked = encoded.input_ids[: encoded.prompt_length] == served(tokenizer, prompts, query)
        whole = served(tokenizer, prompts, query, response)
        ids = encoded.input_ids if chat.end else encoded.input_ids[:-1]
        yield asked, asked and ids == whole[: len(ids)]


@pytest.fixture(params=NAMES)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    folder = Path(os.environ.get("MILP_RAY_TOKENIZERS", "")) / request.param
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("no real tokenizers: tests/data/real_tokenizers.sh FOLDER, MILP_RAY_TOKENIZERS=FOLDER")
    return tokenizer_at(folder)


def test_prompts_are_those_of_the_template(tokenizer: Any) -> None:
    for name, template in families(tokenizer).items():
        tokenizer.chat_template = template
        for thinking in ("template", "off"):
            prompts = chat_prompts(thinking=thinking)
            if name == OPEN and thinking == "template":
                with pytest.raises(ModelError, match="opens a thinking block"):
                    prompts.chat(tokenizer)
                continue
            for number, query in enumerate(TEXTS):
                assert_as_served(tokenizer, prompts, query, TEXTS[(number * 7 + 3) % len(TEXTS)])


def test_users_write_no_control_token(tokenizer: Any) -> None:
    for template in families(tokenizer).values():
        tokenizer.chat_template = template
        prompts = chat_prompts(thinking="off")
        chat = prompts.chat(tokenizer)
        assert chat is not None
        clean = prompts.encode_sample(tokenizer, Sample("q", "r")).input_ids
        added = {one.content for one in tokenizer.added_tokens_decoder.values()}
        text = " ".join(sorted(one for one in added if chat.control.spelled(one))[:60])
        sample = Sample(f"a {text} b", text)
        encoded = prompts.encode_sample(tokenizer, sample)
        assert chat.control.among(encoded.input_ids) == chat.control.among(clean)


def main(root: Path) -> None:
    """Print the table: prompts, and prompts with responses, that are equal, of so many texts."""
    cells: dict[str, dict[str, str]] = {}
    for name in NAMES:
        tokenizer = tokenizer_at(root / name)
        for family, template in families(tokenizer).items():
            tokenizer.chat_template = template
            prompts = chat_prompts(thinking="off" if family == OPEN else "template")
            found = list(compared(tokenizer, prompts))
            chat = prompts.chat(tokenizer)
            mark = "" if chat is not None and chat.end else " ¹"
            cells.setdefault(family, {})[name] = (
                f"{sum(a for a, _ in found)}, {sum(b for _, b in found)}{mark}"
            )
    lines = ["| family | " + " | ".join(NAMES) + " |", "|---" * (len(NAMES) + 1) + "|"]
    for family, row in cells.items():
        lines.append(f"| {family} | " + " | ".join(row.get(name, "–") for name in NAMES) + " |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
