"""The fixed text phrases of both stages (paper, section 3.1), and their tokens for a Hugging Face tokenizer.

Every sequence is at most ``max_length`` tokens, starts with the tokenizer's BOS if it has one and ends with
its EOS. User text never becomes a control token: "</s>" written by a user is encoded as plain characters.

Cutting, where a text is too long:

- a history text keeps its last tokens (the newest);
- a prompt gets at most ``max_length - max_length // 2`` tokens, whatever the response: so the prompt that is
  trained on is the one that is generated from, and half of the length is left to generate into. A plain
  prompt keeps its last tokens, a chat prompt the last tokens of the query inside the whole template;
- a response gets what the prompt leaves (at least ``max_length // 2``) and keeps its first tokens. A response
  that was cut has no EOS: it does not end there.

With ``style: chat`` queries and responses stand in the model's own chat template; history texts, which are no
turns of a chat, keep the plain phrase. Padding, labels and batches are *not* made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milp_ray.config.models import PromptSettings
from milp_ray.data.records import Sample
from milp_ray.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RESPONSE = "{response}"
# Stand-ins for the two texts while a chat template is rendered; no template trims or changes them.
_QUERY_MARK, _RESPONSE_MARK = "milpQuery7f3a", "milpResponse7f3a"


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One sample as tokens; the loss is taken on ``input_ids[prompt_length:]`` (response and EOS)."""

    input_ids: list[int]
    prompt_length: int

    def __repr__(self) -> str:  # token ids are the user's text in another script
        return f"EncodedSample(tokens={len(self.input_ids)}, prompt_length={self.prompt_length})"


@dataclass(frozen=True, slots=True)
class _Chat:
    """A chat template rendered once: what stands before the query, between it and the response, and after."""

    before: list[int]
    between: list[int]
    after: list[int]


class Prompts:
    """Texts of users to the texts and tokens that a model reads."""

    def __init__(self, settings: PromptSettings) -> None:
        self.settings = settings
        self._chat: tuple[PreTrainedTokenizerBase, _Chat] | None = None

    def history(self, text: str) -> str:
        """A history text in its phrase, for stage 1."""
        return self.settings.history.format(text=text)

    def query(self, sample: Sample) -> str:
        """The query, joined with its context where there is one."""
        if sample.context is None:
            return sample.query
        return self.settings.context.format(query=sample.query, context=sample.context)

    def prompt(self, sample: Sample) -> str:
        """Everything before the response, in the plain phrase (the chat template needs a tokenizer)."""
        return self.settings.instruction.removesuffix(_RESPONSE).format(query=self.query(sample))

    def encode_history(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        """BOS, the last tokens of the phrase that fit, EOS."""
        bos, eos = _ends(tokenizer)
        ids = _plain(tokenizer, self.history(text))
        return [*bos, *_last(ids, self.settings.max_length - len(bos) - 1), eos]

    def encode_prompt(self, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> list[int]:
        """What to generate from: ``encode_sample(...).input_ids[:prompt_length]``."""
        encoded = self.encode_sample(tokenizer, sample)
        return encoded.input_ids[: encoded.prompt_length]

    def encode_sample(self, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> EncodedSample:
        """Prompt and response with EOS, cut as the module's docstring says.

        Raises:
            ModelError: the tokenizer has no EOS, or (style chat) no usable chat template.
        """
        if self.settings.style == "chat":
            prompt, response = self._encode_chat(tokenizer, sample)
        else:
            prompt, response = self._encode_plain(tokenizer, sample)
        room = self.settings.max_length - len(prompt)
        return EncodedSample(prompt + response[:room], len(prompt))

    def _encode_plain(
        self, tokenizer: PreTrainedTokenizerBase, sample: Sample
    ) -> tuple[list[int], list[int]]:
        bos, eos = _ends(tokenizer)
        text = self.prompt(sample)
        # "Response: hello" is tokenized with the space on the side of the word: so is what a model generates.
        head = text.rstrip(" ")
        prompt = _plain(tokenizer, head)
        tail = text[len(head) :] + sample.response
        whole = _plain(tokenizer, head + tail)
        # Where a merge reaches over the border, the two sides are encoded apart.
        joined = whole[: len(prompt)] == prompt
        response = whole[len(prompt) :] if joined else _plain(tokenizer, tail)
        return [*bos, *_last(prompt, self._prompt_room() - len(bos))], [*response, eos]

    def _encode_chat(self, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> tuple[list[int], list[int]]:
        chat = self._template(tokenizer)
        room = self._prompt_room() - len(chat.before) - len(chat.between)
        if room < 1:
            raise ModelError(
                f"the chat template alone takes {self._prompt_room() - room} tokens",
                expected=f"less than half of prompts.max_length ({self.settings.max_length})",
                remedy="raise prompts.max_length, or use prompts.style: plain",
            )
        query = _last(_plain(tokenizer, self.query(sample)), room)
        response = [*_plain(tokenizer, sample.response), *chat.after]
        return [*chat.before, *query, *chat.between], response

    def _prompt_room(self) -> int:
        return self.settings.max_length - self.settings.max_length // 2

    def _template(self, tokenizer: PreTrainedTokenizerBase) -> _Chat:
        if self._chat is None or self._chat[0] is not tokenizer:
            self._chat = (tokenizer, _render(tokenizer))
        return self._chat[1]


def _render(tokenizer: PreTrainedTokenizerBase) -> _Chat:
    """A template's three pieces, so that users' texts are never read for control tokens with it."""
    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template",
            expected="a model made for chat, as prompts.style: chat asks",
            remedy="use prompts.style: plain, or a model whose tokenizer has a chat template",
        )
    turns = [{"role": "user", "content": _QUERY_MARK}, {"role": "assistant", "content": _RESPONSE_MARK}]
    try:
        opening = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # a template is a program of the model's author and may raise anything
        raise _bad_template(f"cannot be rendered ({type(error).__name__})") from None
    if whole.count(_QUERY_MARK) != 1 or whole.count(_RESPONSE_MARK) != 1:
        raise _bad_template("does not hold the query and the response once each")
    prompt, _, after = whole.partition(_RESPONSE_MARK)
    before, found, between = prompt.partition(_QUERY_MARK)
    if not found or not prompt.startswith(opening):
        raise _bad_template("opens a response for generation unlike one that is given")
    _, eos = _ends(tokenizer)
    ending = _with_control_tokens(tokenizer, after)
    # Nothing after the end token is generated, so nothing after it is trained on.
    ending = [*ending[: ending.index(eos)], eos] if eos in ending else [*ending, eos]
    return _Chat(_with_control_tokens(tokenizer, before), _with_control_tokens(tokenizer, between), ending)


def _bad_template(fact: str) -> ModelError:
    return ModelError(
        f"the tokenizer's chat template {fact}",
        expected="one user turn and one assistant turn, the prompt a prefix of the whole",
        remedy="use prompts.style: plain",
    )


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a user's text, control tokens never among them."""
    ids = _encode(tokenizer, text)
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if control.isdisjoint(ids):
        return ids
    # Some vocabularies reach "</s>" by ordinary merges of "<", "/", "s", ">": spell it out instead.
    out: list[int] = []
    for token in ids:
        if token in control:
            spelled = [_encode(tokenizer, char) for char in tokenizer.convert_ids_to_tokens(token)]
            out.extend(part for parts in spelled for part in parts if part not in control)
        else:
            out.append(token)
    return out


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # verbose=False: texts longer than the model are expected here and cut afterwards, not warned about.
    ids: list[int] = tokenizer.encode(
        text, add_special_tokens=False, split_special_tokens=True, verbose=False
    )
    return ids


def _with_control_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False) if text else []
    return ids


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no end token",
            expected="an EOS token: responses are trained to end with it",
            remedy="set eos_token in the model's tokenizer_config.json",
        )
    bos = tokenizer.bos_token_id
    return ([] if bos is None else [bos]), tokenizer.eos_token_id


def _last(ids: Sequence[int], count: int) -> list[int]:
    return list(ids[-count:]) if count > 0 else []
