"""The fixed text phrases of both stages (paper, section 3.1), and their tokens.

Every sequence is at most ``max_length`` tokens, starts with the tokenizer's BOS if it has one and
ends with its EOS. User text never becomes a control token: "</s>" written by a user is encoded as
plain characters.

With ``style: chat`` queries and responses stand in the model's own chat template, token for token
as ``apply_chat_template`` gives them, and end with the template's end of turn
(:mod:`milp_ray.data.chat_template`). Only where a user spells a control token is it otherwise: what
stands between two of the template's own is encoded with the spelling as plain characters. History
texts, which are no turns of a chat, keep the plain phrase.

Cutting, where a text is too long:

- a history text keeps its last tokens (the newest);
- a prompt gets at most ``max_length - max_length // 2`` tokens, whatever the response: so the
  prompt that is trained on is the one that is generated from, and half of the length is left to
  generate into. A plain prompt keeps its last tokens. Of a chat's query so many characters go from
  its beginning that the template with the rest fits: it is what a server makes of that rest;
- a response gets what the prompt leaves (at least ``max_length // 2``) and keeps its first tokens.
  A response that was cut has no end token: it does not end there.

Padding, labels and batches are *not* made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from milp_ray.config.models import PromptSettings
from milp_ray.data.chat_template import ChatTemplate, Turns, midnight, no_room, template_source, today
from milp_ray.data.control_tokens import ControlTokens
from milp_ray.data.first_encoding import FirstChat
from milp_ray.data.records import Sample
from milp_ray.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RESPONSE = "{response}"
_CHARACTERS = 24  # of a token at most, on average: longer words are several tokens in any vocabulary


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One sample as tokens; ``input_ids[prompt_length:]`` (response, EOS) bears the loss."""

    input_ids: list[int]
    prompt_length: int

    def __repr__(self) -> str:  # token ids are the user's text in another script
        return f"EncodedSample(tokens={len(self.input_ids)}, prompt_length={self.prompt_length})"


class Prompts:
    """Texts of users to the texts and tokens that a model reads."""

    def __init__(self, settings: PromptSettings) -> None:
        self.settings = settings
        self._made: _OfTokenizer | None = None

    def history(self, text: str) -> str:
        """A history text in its phrase, for stage 1."""
        return self.settings.history.format(text=text)

    def query(self, sample: Sample) -> str:
        """The query, joined with its context where there is one."""
        if sample.context is None:
            return sample.query
        return self.settings.context.format(query=sample.query, context=sample.context)

    def prompt(self, sample: Sample) -> str:
        """Everything before the response, in the plain phrase; chat needs a tokenizer."""
        return self.settings.instruction.removesuffix(_RESPONSE).format(query=self.query(sample))

    def encode_history(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        """BOS, the last tokens of the phrase that fit, EOS."""
        bos, eos = _ends(tokenizer)
        ids = _plain(tokenizer, self.history(text), self._of(tokenizer).control)
        return [*bos, *_last(ids, self.settings.max_length - len(bos) - 1), eos]

    def encode_prompt(self, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> list[int]:
        """What to generate from: ``encode_sample(...).input_ids[:prompt_length]``."""
        encoded = self.encode_sample(tokenizer, sample)
        return encoded.input_ids[: encoded.prompt_length]

    def encode_sample(self, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> EncodedSample:
        """Prompt and response with its end token, cut as the module's docstring says.

        Raises:
            ModelError: the tokenizer has no EOS, or (style chat) no usable chat template.
        """
        if self.settings.style == "plain":
            prompt, response = self._encode_plain(tokenizer, sample)
        elif (first := self._of(tokenizer).first) is not None:
            prompt, response = first.encode(
                self.query(sample), sample.response, self._prompt_room(), self.settings.max_length
            )
        else:
            prompt, response = self._encode_chat(tokenizer, sample)
        room = self.settings.max_length - len(prompt)
        return EncodedSample(prompt + response[:room], len(prompt))

    def encode_text(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        """The tokens of a user's text alone, without ends; control tokens never among them."""
        return _plain(tokenizer, text, self._of(tokenizer).control)

    def encode_prompt_after(
        self, tokenizer: PreTrainedTokenizerBase, before: str, sample: Sample, room: int
    ) -> list[int]:
        """What to generate from when a text stands before the query: ``room`` tokens at most.

        In the plain style the text stands on lines of its own before the phrase; in the chat style
        it begins the user's turn. Where both are too long, the beginning of the text is cut.

        Raises:
            ModelError: as :meth:`encode_sample`.
        """
        longer = Prompts(self.settings.model_copy(update={"max_length": 2 * room}))
        longer._made = self._of(tokenizer)
        if self.settings.style == "plain":
            prompt, (bos, _) = longer.encode_prompt(tokenizer, sample), _ends(tokenizer)
            ids = [*self.encode_text(tokenizer, before + "\n" if before else ""), *prompt[len(bos) :]]
            return [*bos, *_last(ids, room - len(bos))]
        query = self.query(sample)
        whole = replace(sample, query=f"{before}\n\n{query}" if before else query, context=None)
        return longer.encode_prompt(tokenizer, whole)

    def stop_ids(self, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        """The tokens that responses are trained to end with: they end a generated one, too.

        Raises:
            ModelError: as :meth:`encode_sample`.
        """
        _, eos = _ends(tokenizer)
        chat = self.chat(tokenizer)
        return frozenset({chat.control.id_of(chat.end) if chat is not None and chat.end else eos})

    def response_text(self, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
        """A generated response without control tokens, thinking and surrounding white space."""
        chat = self.chat(tokenizer)
        if chat is None or not chat.adds:
            return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        answer = chat.answer(str(tokenizer.decode(ids, skip_special_tokens=False)))
        return chat.control.without(answer).strip()

    def notes(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """What whoever trains and serves with these prompts should know, a sentence each.

        Raises:
            ModelError: as :meth:`encode_sample`.
        """
        chat = self.chat(tokenizer)
        if chat is None:
            return []
        found = [f"responses end with {chat.end or tokenizer.eos_token}"]
        if not chat.end:
            found[0] += ": the chat template ends a turn with no control token"
        if chat.reads_clock:
            found.append(
                f"the chat template writes the date: in the whole run {self.settings.date or today()} (UTC); "
                "each memory's PROMPT.md says how to serve it so; prompts.date sets another"
            )
        if chat.may_think:
            found.append(
                "the chat template leaves it to the model to think first: responses are trained and measured "
                "without; with prompts.thinking: off the prompt ends thinking, and servers must do so, too"
            )
        if chat.closing or chat.kwargs:
            how = "the memory's own template" if chat.closing else f"chat_template_kwargs {chat.kwargs}"
            found.append(f"thinking is off: a server must be given {how} (each memory's PROMPT.md)")
        return found

    def chat(self, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
        """The chat template that texts are put in; None for the plain style and the first encoding.

        Raises:
            ModelError: the tokenizer has no usable chat template.
        """
        return self._of(tokenizer).chat

    def _of(self, tokenizer: PreTrainedTokenizerBase) -> _OfTokenizer:
        if self._made is None or self._made.tokenizer is not tokenizer:
            self._made = _of_tokenizer(tokenizer, self.settings)
        return self._made

    def _encode_plain(
        self, tokenizer: PreTrainedTokenizerBase, sample: Sample
    ) -> tuple[list[int], list[int]]:
        bos, eos = _ends(tokenizer)
        control = self._of(tokenizer).control
        text = self.prompt(sample)
        # "Response: hello" is tokenized with the space on the side of the word: so is what a model
        # generates.
        head = text.rstrip(" ")
        prompt = _plain(tokenizer, head, control)
        tail = text[len(head) :] + sample.response
        whole = _plain(tokenizer, head + tail, control)
        # Where a merge reaches over the border, the two sides are encoded apart.
        joined = whole[: len(prompt)] == prompt
        response = whole[len(prompt) :] if joined else _plain(tokenizer, tail, control)
        return [*bos, *_last(prompt, self._prompt_room() - len(bos))], [*response, eos]

    def _encode_chat(self, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> tuple[list[int], list[int]]:
        chat = self._of(tokenizer).chat
        assert chat is not None
        turns, prompt = self._fitting(tokenizer, chat, sample)
        _, eos = _ends(tokenizer)
        return prompt, [*chat.encode_completion(turns, prompt), *(() if chat.end else (eos,))]

    def _fitting(
        self, tokenizer: PreTrainedTokenizerBase, chat: ChatTemplate, sample: Sample
    ) -> tuple[Turns, list[int]]:
        """The turns, with as much of the query's end as fits, and the prompt's tokens."""
        room = self._prompt_room()
        query = self.query(sample)[-room * _CHARACTERS :]  # what is before that has no room in any case
        turns = chat.turns(query, sample.response)
        prompt = chat.encode_prompt(turns)
        while (over := len(prompt) - room) > 0:
            if not query or len(chat.encode_prompt(chat.turns("", ""))) >= room:
                raise no_room(len(chat.encode_prompt(chat.turns("", ""))), self.settings.max_length)
            # About as many characters as the tokens that are too many have; never none.
            beginning = chat.control.encode_text(query)[:over]
            query = query[max(1, len(tokenizer.decode(beginning))) :]
            turns = chat.turns(query, sample.response)
            prompt = chat.encode_prompt(turns)
        return turns, prompt

    def _prompt_room(self) -> int:
        return self.settings.max_length - self.settings.max_length // 2


@dataclass(frozen=True)
class _OfTokenizer:
    """What is found out once about a tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    control: ControlTokens
    chat: ChatTemplate | None
    first: FirstChat | None


def _of_tokenizer(tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> _OfTokenizer:
    chat, first = None, None
    if settings.encoding == 1:
        control = ControlTokens(tokenizer)
        if settings.style == "chat":
            first = FirstChat(tokenizer, control, midnight(settings.date))
    elif settings.style == "chat":
        chat = ChatTemplate(tokenizer, settings.thinking, settings.date)
        control = chat.control
    else:
        control = ControlTokens(tokenizer, template_source(tokenizer))
    return _OfTokenizer(tokenizer, control, chat, first)


def _plain(tokenizer: PreTrainedTokenizerBase, text: str, control: ControlTokens | None = None) -> list[int]:
    """The tokens of a user's text, control tokens never among them."""
    return (control or ControlTokens(tokenizer, template_source(tokenizer))).encode_text(text)


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
