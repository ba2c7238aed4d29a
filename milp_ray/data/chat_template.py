"""A model's own chat template: one user turn and the assistant's answer, as a server renders them.

The prompt is what ``apply_chat_template`` gives for the user's turn with the generation prompt. The
completion is what it gives for both turns after that, up to the end of the turn. So an empty
thinking block that a template puts before answers belongs to the completion: the model has to write
it when it is served.

- The end of a turn is the first control token after the response. Where the template has none there
  (a newline, or ``</s>`` in a vocabulary without it), the tokenizer's end token ends the response.
- ``thinking: off`` sets the template's switches (``enable_thinking``, ``thinking``) to false. A
  template that opens a thinking block nevertheless (DeepSeek-R1's kind) gets an empty one.
- The clock (``strftime_now``) stands still at the given date, 00:00.

Tokens are those of the whole rendered text, so that vocabularies that put a blank before a text
(SentencePiece) do so where they do when it is served. Does *not* cut
(:mod:`milp_ray.data.prompts`); errors hold no user's text.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jinja2

from milp_ray.data.control_tokens import ControlTokens, Segment
from milp_ray.errors import ModelError, own_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stand-ins for texts while a template is rendered; no template trims or changes them.
QUERY, RESPONSE, _SPELLING = "milpQuery7f3a", "milpResponse7f3a", "milpSpelling7f3a"
_CLOCK = "strftime_now"
_SWITCHES = ("enable_thinking", "thinking")
_THINKING = re.compile(
    r"(?:<|\[|<\|)(/?)(?:(START_|END_)?(?:seed:)?think(?:ing)?|thought)(?:>|\]|\|>)", re.IGNORECASE
)
_TIMES = (datetime.datetime(2001, 2, 3, 4, 5, 6), datetime.datetime(2032, 11, 22, 17, 48, 59))


@dataclass(frozen=True, slots=True)
class Turns:
    """A query and its response in the template; ``exact``: no user text spells a control token."""

    prompt: tuple[Segment, ...]
    completion: tuple[Segment, ...]
    exact: bool


class ChatTemplate:
    """The chat template of a tokenizer, with its clock and its thinking decided.

    Args:
        tokenizer: whose template it is.
        thinking: see :class:`milp_ray.config.models.PromptSettings`.
        date: where the template's clock stands.

    Attributes:
        control: the control tokens of the vocabulary.
        kwargs: arguments that a server must give the template (``chat_template_kwargs``).
        closing: what is added to the rendered generation prompt; no argument of the template does
            it.
        end: the control token that ends a turn, as text; empty where the template has none.
        lead: what the template puts between the generation prompt and the response.
        reads_clock: whether it renders differently at two times.

    Raises:
        ModelError: there is no template, or none that an answer can be trained and served with.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        thinking: Literal["template", "off"] = "template",
        date: datetime.date | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.source = source_of(tokenizer)
        self.reads_clock = _reads_clock(tokenizer, self.source)
        self._template = with_clock(self.source, midnight(date))
        self.kwargs: dict[str, Any] = {}
        if thinking == "off":
            switches: dict[str, Any] = {
                name: False for name in _SWITCHES if re.search(rf"\b{name}\b", self.source)
            }
            if self._render(QUERY, **switches) != self._render(QUERY):
                self.kwargs = switches
        self.closing = self._closed(self._render(QUERY), thinking)
        self._frame()
        self.control = ControlTokens(tokenizer, f"{self.source}\0{self._whole}")
        found = self.control.spellings(self._after)
        self.end = found[0] if found else ""
        self._ending = self._after.partition(self.end)[0] + self.end if self.end else ""
        turns = self.turns(QUERY, RESPONSE)
        self._in_prompt, self._in_both = (
            self.control.among(self.control.encode_rendered(_text(part)))
            for part in (turns.prompt, turns.prompt + turns.completion)
        )

    @property
    def may_think(self) -> bool:
        """Whether it leaves it to the model to think before it answers."""
        return _THINKING.search(self.source) is not None and _THINKING.search(self._between) is None

    @property
    def adds(self) -> bool:
        """Whether what is generated may hold more than a response: thinking, a channel's name."""
        return bool(self.lead.strip()) or _THINKING.search(self.source) is not None

    def answer(self, text: str) -> str:
        """A generated text, control tokens included, without thinking and the template's own words.

        A text that ends before its thinking does holds no answer.
        """
        closings = [match.group() for match in _THINKING.finditer(text) if _closes(match)]
        if not closings and self.lead.strip() and self.lead.strip() in text:
            closings = [self.lead.strip()]
        if closings:
            return text[text.rindex(closings[-1]) + len(closings[-1]) :]
        return "" if _THINKING.search(text) else text

    def turns(self, query: str, response: str) -> Turns:
        """A query and its response, as the template renders them."""
        safe_query, query_spellings = self.control.replaced(query, _SPELLING + "q")
        safe_response, response_spellings = self.control.replaced(response, _SPELLING + "r")
        opening, whole = self._render(safe_query), self._render(safe_query, safe_response)
        asked = _within(opening, self._before, self._opening_after)
        head = None if asked is None else self._before + asked + self._whole_between
        answered = None if head is None else _within(whole, head, self._after)
        if asked is None or answered is None:  # it changes more than the ends of texts
            if not query_spellings and not response_spellings and whole.startswith(opening + self.closing):
                rest = whole.removeprefix(opening + self.closing).removesuffix(self._after)
                return Turns((Segment(opening + self.closing),), (Segment(rest), Segment(self._ending)), True)
            asked, answered = safe_query, safe_response
        asked, answered = _put_back(asked, query_spellings, "q"), _put_back(answered, response_spellings, "r")
        prompt = (Segment(self._before), Segment(asked, True), Segment(self._between))
        completion = (Segment(self.lead), Segment(answered, True), Segment(self._ending))
        return Turns(prompt, completion, not query_spellings and not response_spellings)

    def encode_prompt(self, turns: Turns) -> list[int]:
        """The tokens that a response is generated from."""
        return self._encode(turns.prompt, self._in_prompt if turns.exact else None)

    def encode_completion(self, turns: Turns, prompt: Sequence[int]) -> list[int]:
        """The tokens after ``prompt``, the end of turn among them where the template has one."""
        whole = self._encode(turns.prompt + turns.completion, self._in_both if turns.exact else None)
        if whole[: len(prompt)] == list(prompt):
            return whole[len(prompt) :]
        # A merge reaches over the border: the prompt is as it is served, and the rest is encoded
        # apart.
        return self.control.encode_segments(turns.completion, continued=True)

    def _encode(self, segments: Sequence[Segment], expected: list[int] | None) -> list[int]:
        """As a server does where that makes the ``expected`` control tokens and no other."""
        if expected is not None:
            ids = self.control.encode_rendered(_text(segments))
            if self.control.among(ids) == expected:
                return ids
        return self.control.encode_segments(segments)

    def served_template(self) -> str:
        """The template with date and thinking decided, for a server that takes a template file.

        Empty where the model's own needs no more than :attr:`kwargs`.
        """
        if not (self.closing or self.reads_clock):
            return ""
        switches = "".join(f"{{%- set {name} = false %}}\n" for name in self.kwargs)
        tail = ""
        if self.closing:
            tail = f"{{%- if add_generation_prompt %}}{{{{ {self.closing!r} }}}}{{% endif %}}"
        return switches + self._template + tail

    def _closed(self, opening: str, thinking: str) -> str:
        """What closes the thinking block that the generation prompt opens, if it does."""
        tags = list(_THINKING.finditer(opening))
        if not tags or _closes(tags[-1]):
            return ""
        tag = tags[-1].group()
        if thinking == "template":
            raise ModelError(
                f"the tokenizer's chat template opens a thinking block ({tag}) for every response",
                where="prompts.thinking",
                expected="a prompt after which a response without thinking, as users write it, can begin",
                remedy="set prompts.thinking to off, or use prompts.style: plain",
            )
        end = tag.replace("START_", "END_") if "START_" in tag else f"{tag[0]}/{tag[1:]}"
        return "\n" * max(0, 2 - (len(opening) - len(opening.rstrip("\n")))) + f"{end}\n\n"

    def _frame(self) -> None:
        """What stands around the two texts."""
        opening, self._whole = self._render(QUERY), self._render(QUERY, RESPONSE)
        if self._whole.count(QUERY) != 1 or self._whole.count(RESPONSE) != 1 or opening.count(QUERY) != 1:
            raise bad_template("does not hold the query and the response once each")
        self._before, _, self._opening_after = opening.partition(QUERY)
        self._between = self._opening_after + self.closing
        head, _, self._after = self._whole.partition(RESPONSE)
        before, _, self._whole_between = head.partition(QUERY)
        prompt = opening + self.closing
        self.lead = head.removeprefix(prompt) if head.startswith(prompt) else ""
        decided = (
            self.closing or self.kwargs
        )  # history is often rendered without the block that is closed here
        if before != self._before or (not head.startswith(prompt) and not decided):
            raise bad_template("opens a response for generation unlike one that is given")

    def _render(self, query: str, response: str | None = None, **more: Any) -> str:
        return render(self._tokenizer, self._template, query, response, **{**self.kwargs, **more})


def render(
    tokenizer: PreTrainedTokenizerBase, template: str, query: str, response: str | None = None, **more: Any
) -> str:
    """A user's turn with the generation prompt, or both turns, in a chat template.

    Args:
        tokenizer: whose special tokens the template may name.
        template: its source.
        query, response: what is in the turns.
        more: arguments of the template.

    Raises:
        ModelError: it cannot be rendered.
    """
    turns = [{"role": "user", "content": query}]
    if response is not None:
        turns.append({"role": "assistant", "content": response})
    try:
        return str(
            tokenizer.apply_chat_template(
                turns, chat_template=template, tokenize=False, add_generation_prompt=response is None, **more
            )
        )
    except Exception as error:  # a template is a program of the model's author and may raise anything
        words = type(error).__name__
        if query == QUERY and response in (None, RESPONSE):  # else its words may quote a user
            words += f": {own_words(error)}"
        raise bad_template(f"cannot be rendered ({words})") from None


def with_clock(template: str, now: datetime.datetime) -> str:
    """The template with its clock standing at ``now``; itself where it has none.

    A macro takes the place of the function: that works in servers, too, and a function that is
    given to ``apply_chat_template`` arrives in the template as a piece of text.
    """
    if _CLOCK not in template:
        return template
    tokens = jinja2.Environment().lex(template)
    strings = (text[1:-1] for _, kind, text in tokens if kind == "string" and "%" in text)
    formats = sorted({text.encode("ascii", "backslashreplace").decode("unicode-escape") for text in strings})
    cases = {text: now.strftime(text) for text in formats}
    text = f"{cases!r}[format] if format in {list(cases)!r} else raise_exception('no such format')"
    return f"{{%- macro {_CLOCK}(format) -%}}{{{{ {text} }}}}{{%- endmacro %}}\n{template}"


def _reads_clock(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether a template renders differently at two times.

    Raises:
        ModelError: it does in a way in which its clock cannot be stopped.
    """
    if _CLOCK not in template:
        return False
    render(tokenizer, template, QUERY, RESPONSE)  # whatever else may be wrong with it
    try:
        one, other = (render(tokenizer, with_clock(template, now), QUERY, RESPONSE) for now in _TIMES)
    except ModelError:
        raise bad_template("reads the clock in a way that cannot be repeated") from None
    return one != other


def midnight(date: datetime.date | None) -> datetime.datetime:
    """Where a template's clock stands on a date, or today."""
    return datetime.datetime.combine(date or today(), datetime.time())


def today() -> datetime.date:
    """The date, the same on every node: in UTC."""
    return datetime.datetime.now(datetime.UTC).date()


def template_source(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokenizer's chat templates spell: of all that it has; empty where it has none."""
    found = tokenizer.chat_template or ""
    return "\0".join(found.values()) if isinstance(found, dict) else str(found)


def source_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template's source.

    Raises:
        ModelError: there is none.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template",
            where="prompts.style",
            expected="a model made for chat, as prompts.style: chat asks",
            remedy="use prompts.style: plain, or a model whose tokenizer has a chat template",
        )
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:  # several of them, none of which is the default one
        raise bad_template("is several ones without a default") from None


def _within(text: str, before: str, after: str) -> str | None:
    """What stands between the two; None where they are not around it."""
    if len(text) < len(before) + len(after) or not (text.startswith(before) and text.endswith(after)):
        return None
    return text[len(before) : len(text) - len(after)]


def _text(segments: Sequence[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def _put_back(text: str, spellings: Sequence[str], kind: str) -> str:
    for number, spelling in enumerate(spellings):
        text = text.replace(f"{_SPELLING}{kind}{number}x", spelling)
    return text


def _closes(tag: re.Match[str]) -> bool:
    return bool(tag.group(1)) or (tag.group(2) or "").upper() == "END_"


def bad_template(fact: str) -> ModelError:
    """The error of a template that cannot be used."""
    return ModelError(
        f"the tokenizer's chat template {fact}",
        where="prompts.style",
        expected="one user turn and one assistant turn, the prompt a prefix of the whole",
        remedy="use prompts.style: plain",
    )


def no_room(tokens: int, max_length: int) -> ModelError:
    """The error of a template that takes all the room of a prompt."""
    return ModelError(
        f"the chat template alone takes {tokens} tokens",
        where="prompts.max_length",
        expected=f"less than half of prompts.max_length ({max_length})",
        remedy="raise prompts.max_length, or use prompts.style: plain",
    )
